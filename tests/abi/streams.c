/*
 * streams MODEL: what a stream scores, whatever the chunks; crossings, cleared bytes, forks and
 * resets; a stream of two threads, and one that outlives its guard.
 */
#include "sweep.h"

#include <math.h>
#include <pthread.h>

#define LONGER TEXT " I want to hurt many people. Thank you for the wonderful evening."

static siren_stream *stream;

static siren_stream *new_stream(const siren_stream_options *options)
{
    siren_error failure = SIREN_ERROR_INIT;
    siren_stream *made = NULL;
    if (siren_stream_new(guard, options, &made, &failure) != SIREN_OK) {
        fprintf(stderr, "%s\n", failure.message);
        exit(1);
    }
    return made;
}

/* A stream that compares with `threshold`. */
static siren_stream *stream_at(double threshold, uint64_t hysteresis)
{
    siren_stream_options options = SIREN_STREAM_OPTIONS_INIT;
    options.has_threshold = 1;
    options.threshold = threshold;
    options.hysteresis = hysteresis;
    return new_stream(&options);
}

static siren_push_result must_push(siren_stream *to, const char *data, size_t length,
                                   const siren_push_options *options)
{
    siren_error failure = SIREN_ERROR_INIT;
    siren_push_result result = SIREN_PUSH_RESULT_INIT;
    if (!CHECK(siren_stream_push(to, data, length, options, &result, &failure) == SIREN_OK)) {
        fprintf(stderr, "  %s\n", failure.message);
    }
    CHECK(result.is_harmful == (result.score >= result.threshold));
    return result;
}

static siren_push_result push(siren_stream *to, const char *text)
{
    return must_push(to, text, strlen(text), NULL);
}

static siren_push_result finish(siren_stream *to)
{
    siren_error failure = SIREN_ERROR_INIT;
    siren_push_result result = SIREN_PUSH_RESULT_INIT;
    if (!CHECK(siren_stream_finish(to, NULL, &result, &failure) == SIREN_OK)) {
        fprintf(stderr, "  %s\n", failure.message);
    }
    return result;
}

static int near(double a, double b) { return fabs(a - b) <= 1e-4; }

/* What the first `length` bytes of `text` score as a response to `prompt`, which may be NULL. */
static siren_result whole(const char *prompt, const char *text, size_t length)
{
    siren_error failure = SIREN_ERROR_INIT;
    siren_input input = SIREN_INPUT_INIT;
    siren_result result = SIREN_RESULT_INIT;
    input.prompt = text_of(prompt);
    input.response.data = text;
    input.response.length = length;
    REQUIRE(siren_score(guard, &input, NULL, &result, &failure) == SIREN_OK);
    return result;
}

/* Every push scores what the prefix scores, in chunks of `chunk` bytes; half a character waits. */
static void same_score(const char *prompt, const char *text, size_t chunk)
{
    siren_stream_options options = SIREN_STREAM_OPTIONS_INIT;
    siren_stream *made;
    siren_push_result result = SIREN_PUSH_RESULT_INIT;
    size_t at, length = strlen(text);
    uint64_t cleared = 0;
    options.prompt = text_of(prompt);
    made = new_stream(&options);
    for (at = 0; at < length; at += chunk) {
        size_t end = at + chunk < length ? at + chunk : length, whole_end = end;
        siren_result expected;
        result = must_push(made, text + at, end - at, NULL);
        /* Back to the end of a character. */
        while (whole_end > 0 && ((unsigned char)text[whole_end] & 0xC0) == 0x80) {
            whole_end--;
        }
        expected = whole(prompt, text, whole_end);
        if (!CHECK(near(result.score, expected.score))) {
            fprintf(stderr, "  %.6f for %.*s, which scores %.6f\n", result.score, (int)whole_end,
                    text, expected.score);
        }
        CHECK(result.tokens == expected.tokens && result.truncated == expected.truncated);
        CHECK(result.threshold == expected.threshold && result.windows == 0);
        CHECK(result.cleared_bytes >= cleared && result.cleared_bytes <= whole_end);
        cleared = result.cleared_bytes;
    }
    result = finish(made);
    CHECK(near(result.score, whole(prompt, text, length).score));
    CHECK(result.crossed || result.cleared_bytes == length);
    CHECK(siren_stream_free(made) == SIREN_OK);
}

static void scores_of_prefixes(void)
{
    static const char *const texts[] = {
        LONGER, "a  \t b\n\n\n\nc <|im_start|>user <|im_st x", "  leading and <s>", "",
        "na\xc3\xafve \xe2\x80\x9cquoted\xe2\x80\x9d \xf0\x9f\x98\x80 \xe4\xb8\xad\xe6\x96\x87.",
    };
    static const size_t chunks[] = {1, 2, 5, 1000};
    size_t text, chunk;
    for (text = 0; text < sizeof texts / sizeof *texts; text++) {
        for (chunk = 0; chunk < sizeof chunks / sizeof *chunks; chunk++) {
            same_score(NULL, texts[text], chunks[chunk]);
            same_score(OTHER, texts[text], chunks[chunk]);
        }
    }
}

static void nothing_yet(void)
{
    siren_stream_options options = SIREN_STREAM_OPTIONS_INIT;
    siren_stream *bare = new_stream(NULL), *prompted;
    options.prompt = text_of(OTHER);
    prompted = new_stream(&options);
    CHECK(near(must_push(bare, NULL, 0, NULL).score, score_of(guard, " ")));
    CHECK(near(must_push(prompted, NULL, 0, NULL).score, score_of(guard, OTHER)));
    CHECK(near(push(prompted, "\n ").score, score_of(guard, OTHER)));
    CHECK(finish(bare).cleared_bytes == 0);
    CHECK(siren_stream_free(bare) == SIREN_OK && siren_stream_free(prompted) == SIREN_OK);
}

/* The crossing is the first token whose running score reached the threshold; it stays. */
static void crossing(void)
{
    double scores[256];
    siren_push_options options = SIREN_PUSH_OPTIONS_INIT;
    siren_stream *all = stream_at(0.0, 0), *third = stream_at(0.0, 3), *none = stream_at(1.0, 0);
    siren_stream *usual = stream_at(0.5, 0), *forked = NULL;
    siren_push_result result, later;
    uint64_t i, first;
    options.token_scores = scores;
    options.token_scores_capacity = 256;
    result = must_push(usual, TEXT, strlen(TEXT), &options);
    REQUIRE(result.token_scores_count > 0 && result.token_scores_count <= 256);
    CHECK(result.first_scored + result.token_scores_count == result.tokens);
    CHECK(near(scores[result.token_scores_count - 1], result.score));
    for (i = 0; i < result.token_scores_count && scores[i] < 0.5; i++) {
    }
    first = result.first_scored + i;
    REQUIRE(result.crossed == 1 && result.is_harmful == 1);
    CHECK(result.crossing_token == first);
    CHECK(result.cleared_bytes < result.crossing_byte && result.crossing_byte <= strlen(TEXT));

    CHECK(siren_stream_fork(usual, &forked, NULL) == SIREN_OK);
    later = push(usual, " Thank you for the wonderful evening with friends and bread.");
    CHECK(later.crossed == 1 && later.crossing_token == result.crossing_token);
    CHECK(later.crossing_byte == result.crossing_byte);
    CHECK(later.cleared_bytes == result.cleared_bytes);
    later = finish(forked);
    CHECK(later.crossed == 1 && later.crossing_token == result.crossing_token);
    CHECK(later.cleared_bytes == result.cleared_bytes);
    CHECK(siren_stream_reset(usual, NULL) == SIREN_OK);
    later = push(usual, "Hello");
    CHECK(near(later.score, score_of(guard, "Hello")));
    CHECK(later.crossed == later.is_harmful || later.crossed == 1);

    result = push(all, TEXT);
    CHECK(result.crossed == 1 && result.cleared_bytes == 0 && result.crossing_byte > 0);
    first = result.crossing_token;
    result = push(third, TEXT);
    CHECK(result.crossed == 1 && result.crossing_token == first + 2);
    result = push(none, TEXT);
    CHECK(result.crossed == 0 && result.crossing_token == 0 && result.crossing_byte == 0);
    CHECK(finish(none).cleared_bytes == strlen(TEXT));
    CHECK(siren_stream_free(all) == SIREN_OK && siren_stream_free(third) == SIREN_OK);
    CHECK(siren_stream_free(none) == SIREN_OK && siren_stream_free(usual) == SIREN_OK);
    CHECK(siren_stream_free(forked) == SIREN_OK);
}

/* What is not known to be harmless is not cleared. */
static void cleared(void)
{
    siren_stream *made = stream_at(1.0, 0);
    CHECK(push(made, "bread\xe2\x82").cleared_bytes <= 5);
    CHECK(push(made, "\xac").cleared_bytes <= 8);
    CHECK(push(made, " and butter").cleared_bytes >= 8);
    CHECK(push(made, " <|im_st").cleared_bytes <= 20);
    CHECK(push(made, "art|> ").cleared_bytes <= 33);
    CHECK(finish(made).cleared_bytes == 33);
    CHECK(siren_stream_free(made) == SIREN_OK);
}

static void token_scores(void)
{
    double scores[256], few[3] = {-1.0, -1.0, -1.0};
    unsigned char *odd = (unsigned char *)edge(3 * sizeof(double) + 1);
    siren_push_options options = SIREN_PUSH_OPTIONS_INIT;
    siren_push_result all, some;
    siren_stream *made = new_stream(NULL);
    options.token_scores = scores;
    options.token_scores_capacity = 256;
    all = must_push(made, TEXT, strlen(TEXT), &options);
    CHECK(siren_stream_reset(made, NULL) == SIREN_OK);
    /* Room for two: no third is written, and the count is told. */
    options.token_scores = few;
    options.token_scores_capacity = 2;
    some = must_push(made, TEXT, strlen(TEXT), &options);
    CHECK(some.token_scores_count == all.token_scores_count && all.token_scores_count > 3);
    CHECK(near(few[0], scores[0]) && near(few[1], scores[1]) && few[2] == -1.0);
    CHECK(siren_stream_reset(made, NULL) == SIREN_OK);
    options.token_scores = (double *)(void *)odd;
    options.token_scores_capacity = 3;
    must_push(made, TEXT, strlen(TEXT), &options);
    memcpy(few, odd, sizeof few);
    CHECK(near(few[0], scores[0]) && near(few[2], scores[2]));
    CHECK(siren_stream_reset(made, NULL) == SIREN_OK);
    options.token_scores_capacity = 0;
    CHECK(must_push(made, TEXT, strlen(TEXT), &options).token_scores_count
          == all.token_scores_count);
    CHECK(siren_stream_reset(made, NULL) == SIREN_OK);
    CHECK(must_push(made, TEXT, strlen(TEXT), NULL).token_scores_count == 0);
    CHECK(siren_stream_free(made) == SIREN_OK);
}

/* A push that fails leaves the stream as it was. */
static void failures(void)
{
    static const struct {
        const char *bytes;
        size_t length;
    } invalid[] = {{"\xff", 1}, {"b\x80", 2}, {"\xc3q", 2}, {"\xed\xa0\x80", 3}, {"\xf5", 1}};
    siren_push_options options = SIREN_PUSH_OPTIONS_INIT;
    double scores[2] = {-1.0, -1.0};
    siren_cancel_token *token = NULL;
    size_t i;
    stream = new_stream(NULL);
    options.token_scores = scores;
    options.token_scores_capacity = 2;
    push(stream, "How can I make");
    for (i = 0; i < sizeof invalid / sizeof *invalid; i++) {
        REFUSED(SIREN_INVALID_UTF8, "UTF-8",
                siren_stream_push(stream, invalid[i].bytes, invalid[i].length, &options,
                                  &out.push, error));
    }
    CHECK(siren_cancel_token_new(&token, NULL) == SIREN_OK);
    CHECK(siren_cancel(token, NULL) == SIREN_OK);
    options.cancel = token;
    REFUSED(SIREN_CANCELLED, "cancelled",
            siren_stream_push(stream, " x", 2, &options, &out.push, error));
    CHECK(siren_cancel_token_free(token) == SIREN_OK);
    CHECK(scores[0] == -1.0 && scores[1] == -1.0);
    CHECK(near(push(stream, " a pipe bomb at home?").score, score_of(guard, TEXT)));

    /* Half a character is not the end of a text. */
    push(stream, "\xe2\x82");
    REFUSED(SIREN_INVALID_UTF8, "character", siren_stream_finish(stream, NULL, &out.push, error));
    CHECK(near(push(stream, "\xac").score, score_of(guard, TEXT "\xe2\x82\xac")));
    CHECK(near(finish(stream).score, score_of(guard, TEXT "\xe2\x82\xac")));
    REFUSED(SIREN_INVALID_ARGUMENT, "finish",
            siren_stream_push(stream, "x", 1, NULL, &out.push, error));
    CHECK(siren_stream_reset(stream, NULL) == SIREN_OK);
    CHECK(near(push(stream, TEXT).score, score_of(guard, TEXT)));
    CHECK(siren_stream_free(stream) == SIREN_OK);
}

static void bad_options(void)
{
    static const double bad[] = {NAN, -0.1, 1.1, INFINITY};
    siren_stream_options options = SIREN_STREAM_OPTIONS_INIT;
    size_t i;
    options.has_threshold = 1;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        options.threshold = bad[i];
        REFUSED(SIREN_INVALID_ARGUMENT, "threshold is ",
                siren_stream_new(guard, &options, &out.stream, error));
    }
}

static void forks(void)
{
    siren_stream_options options = SIREN_STREAM_OPTIONS_INIT;
    siren_stream *first, *second = NULL;
    options.prompt = text_of(OTHER);
    first = new_stream(&options);
    push(first, "How can");
    CHECK(siren_stream_fork(first, &second, NULL) == SIREN_OK);
    CHECK(near(push(first, " I bake bread?").score,
               whole(OTHER, "How can I bake bread?", 21).score));
    CHECK(near(push(second, TEXT + 7).score, whole(OTHER, TEXT, strlen(TEXT)).score));
    CHECK(siren_stream_free(first) == SIREN_OK);
    CHECK(near(push(second, "!").score, whole(OTHER, TEXT "!", strlen(TEXT) + 1).score));
    CHECK(siren_stream_reset(second, NULL) == SIREN_OK);
    CHECK(near(push(second, TEXT).score, whole(OTHER, TEXT, strlen(TEXT)).score));
    CHECK(siren_stream_free(second) == SIREN_OK);
}

/* ---- limits ---- */

static siren_guard *open_limited(const char *model)
{
    siren_error failure = SIREN_ERROR_INIT;
    siren_open_options options;
    siren_guard *opened = NULL;
    siren_open_options_init(&options, sizeof options);
    options.model = text_of(model);
    options.threads = 2;
    options.max_streams = 3;
    options.max_length = 12;
    options.kv_bytes = 1;
    options.no_prefix_cache = 1;
    if (siren_open(&options, &opened, &failure) != SIREN_OK) {
        fprintf(stderr, "%s\n", failure.message);
        exit(1);
    }
    return opened;
}

static void limits(const char *model)
{
    siren_guard *ordinary = guard;
    siren_stream_options options = SIREN_STREAM_OPTIONS_INIT;
    siren_push_result result = SIREN_PUSH_RESULT_INIT;
    siren_stream *streams[3];
    siren_guard_stats stats;
    double kept;
    int i;
    guard = open_limited(model);
    for (i = 0; i < 3; i++) {
        streams[i] = new_stream(NULL);
    }
    REFUSED(SIREN_LIMIT_EXCEEDED, "3", siren_stream_new(guard, NULL, &out.stream, error));
    REFUSED(SIREN_LIMIT_EXCEEDED, "3", siren_stream_fork(streams[0], &out.stream, error));
    CHECK(siren_stats_init(&stats, sizeof stats) == SIREN_OK);
    CHECK(siren_stats(guard, &stats, NULL) == SIREN_OK);
    CHECK(stats.streams == 3);
    CHECK(siren_stream_free(streams[2]) == SIREN_OK);
    /* Streams in turn, with room for none of them: each is parked, and runs its text again. */
    for (i = 0; i < 4; i++) {
        CHECK(near(push(streams[0], "ab ").score, whole(NULL, "ab ab ab ab ", 3 * (i + 1u)).score));
        CHECK(near(push(streams[1], "c d ").score, whole(NULL, "c d c d c d c d ", 4 * (i + 1u)).score));
    }
    CHECK(siren_stream_free(streams[0]) == SIREN_OK);
    CHECK(siren_stream_free(streams[1]) == SIREN_OK);

    /* Past max_length the score of the first tokens stays, and it says so. */
    streams[0] = new_stream(NULL);
    result = push(streams[0], LONGER);
    CHECK(result.truncated == 1 && result.tokens == 12);
    kept = result.score;
    CHECK(near(kept, score_of(guard, LONGER)));
    result = push(streams[0], LONGER);
    CHECK(result.truncated == 1 && near(result.score, kept));
    CHECK(siren_stream_free(streams[0]) == SIREN_OK);
    options.windows = 1;
    streams[0] = new_stream(&options);
    result = push(streams[0], LONGER);
    CHECK(result.windows > 1 && result.window_index < result.windows && !result.truncated);
    CHECK(result.window_start < result.window_end && result.window_end <= strlen(LONGER));
    CHECK(siren_stream_free(streams[0]) == SIREN_OK);
    CHECK(siren_free(guard) == SIREN_OK);
    guard = ordinary;
}

/* ---- two threads on one stream ---- */

enum { ROUNDS = 200 };

static int pushed, in_use, wrong;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *push_many(void *unused)
{
    int i;
    (void)unused;
    for (i = 0; i < ROUNDS; i++) {
        siren_push_result result = SIREN_PUSH_RESULT_INIT;
        int32_t status = i % 50 == 49 ? siren_stream_reset(stream, NULL)
                                      : siren_stream_push(stream, "a ", 2, NULL, &result, NULL);
        pthread_mutex_lock(&lock);
        pushed += status == SIREN_OK;
        in_use += status == SIREN_IN_USE;
        wrong += status != SIREN_OK && status != SIREN_IN_USE;
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static void shared(void)
{
    pthread_t threads[2];
    int i;
    stream = new_stream(NULL);
    for (i = 0; i < 2; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, push_many, NULL) == 0);
    }
    for (i = 0; i < 2; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(pushed > 0 && wrong == 0 && pushed + in_use == 2 * ROUNDS);
    CHECK(siren_stream_reset(stream, NULL) == SIREN_OK);
    CHECK(near(push(stream, TEXT).score, score_of(guard, TEXT)));
    CHECK(siren_stream_free(stream) == SIREN_OK);
}

static void outlives_its_guard(const char *model)
{
    siren_guard *ordinary = guard;
    double expected = score_of(guard, TEXT);
    siren_stream *forked = NULL;
    guard = open_model(model);
    stream = new_stream(NULL);
    push(stream, "How can I make");
    CHECK(siren_free(guard) == SIREN_OK);
    REFUSED(SIREN_INVALID_HANDLE, "freed", siren_stream_new(guard, NULL, &out.stream, error));
    CHECK(near(push(stream, TEXT + 14).score, expected));
    CHECK(siren_stream_fork(stream, &forked, NULL) == SIREN_OK);
    CHECK(siren_stream_free(stream) == SIREN_OK);
    CHECK(near(finish(forked).score, expected));
    CHECK(siren_stream_free(forked) == SIREN_OK);
    guard = ordinary;
}

/* ---- structs of every size, as in sweep.c ---- */

static void fill_push_options(void *bytes)
{
    siren_push_options options = SIREN_PUSH_OPTIONS_INIT;
    memcpy(bytes, &options, sizeof options);
}

static void fill_output(void *bytes) { (void)bytes; }

static int32_t options_of_push(void *p)
{
    return siren_stream_push(stream, "a", 1, p, &out.push, error);
}

static int32_t result_of_push(void *p) { return siren_stream_push(stream, "a", 1, NULL, p, error); }

static int32_t options_of_finish(void *p)
{
    CHECK(siren_stream_reset(stream, NULL) == SIREN_OK);
    return siren_stream_finish(stream, p, &out.push, error);
}

static int32_t result_of_finish(void *p)
{
    CHECK(siren_stream_reset(stream, NULL) == SIREN_OK);
    return siren_stream_finish(stream, NULL, p, error);
}

static const struct kind kinds[] = {
    {"siren_push_options", sizeof(siren_push_options), 0, MAY_BE_NULL, fill_push_options,
     options_of_push},
    {"siren_push_result", sizeof(siren_push_result), 1, NEVER_NULL, fill_output, result_of_push},
    {"siren_push_options", sizeof(siren_push_options), 0, MAY_BE_NULL, fill_push_options,
     options_of_finish},
    {"siren_push_result", sizeof(siren_push_result), 1, NEVER_NULL, fill_output,
     result_of_finish},
};

static int32_t prometheus(char *buffer, size_t capacity, size_t *length)
{
    return siren_stats_prometheus(guard, buffer, capacity, length, error);
}

static void counted(void)
{
    siren_guard_stats before, after;
    siren_push_result failed = SIREN_PUSH_RESULT_INIT;
    siren_input inputs[2];
    siren_result results[2] = {SIREN_RESULT_INIT, SIREN_RESULT_INIT};
    uint64_t calls = 0;
    int i;
    CHECK(siren_stats_init(&before, sizeof before) == SIREN_OK);
    CHECK(siren_stats_init(&after, sizeof after) == SIREN_OK);
    stream = new_stream(NULL);
    CHECK(siren_stats(guard, &before, NULL) == SIREN_OK);
    push(stream, "One push.");
    CHECK(siren_stream_push(stream, "\xff", 1, NULL, &failed, NULL) == SIREN_INVALID_UTF8);
    score_of(guard, "a text that nobody has scored before this one");
    inputs[0] = inputs[1] = input_of("another text that nobody has scored before this one");
    CHECK(siren_score_batch(guard, inputs, 2, NULL, results, NULL, NULL) == SIREN_OK);
    CHECK(siren_stats(guard, &after, NULL) == SIREN_OK);
    CHECK(after.requests == before.requests + 4);
    CHECK(after.texts == before.texts + 3 && after.pushes == before.pushes + 2);
    CHECK(after.tokens > before.tokens && after.passes > before.passes);
    CHECK(after.errors[SIREN_INVALID_UTF8] == before.errors[SIREN_INVALID_UTF8] + 1);
    CHECK(after.streams == 1 && after.queue_depth == 0 && after.kv_bytes > 0);
    CHECK(after.pass_tokens_limit > 0 && after.latency_sum > before.latency_sum);
    for (i = 0; i < SIREN_LATENCY_BUCKETS; i++) {
        CHECK(after.latency_counts[i] >= before.latency_counts[i]);
        calls += after.latency_counts[i] - before.latency_counts[i];
    }
    CHECK(calls == 4);
    CHECK(siren_stream_free(stream) == SIREN_OK);
    sweep_buffer(prometheus, "siren_requests");
}

int main(int argc, char **argv)
{
    size_t i;
    REQUIRE(argc == 2);
    guard = open_model(argv[1]);
    counted();
    scores_of_prefixes();
    nothing_yet();
    crossing();
    cleared();
    token_scores();
    failures();
    bad_options();
    forks();
    limits(argv[1]);
    shared();
    outlives_its_guard(argv[1]);
    stream = new_stream(NULL);
    for (i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        sweep_accepted_structs(&kinds[i]);
    }
    CHECK(siren_stream_free(stream) == SIREN_OK);
    CHECK(siren_free(guard) == SIREN_OK);
    return check_summary();
}
