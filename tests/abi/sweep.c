/*
 * sweep MODEL VERSION: every entry point with everything that can be wrong with its arguments.
 * Memory that must not be read or written lies on a forbidden page; outputs are filled with 0xA5
 * before every call that must fail, and compared after it.
 */
#include "sweep.h"

#include <math.h>
#include <pthread.h>

static siren_input good;
static siren_result expected;
static siren_stream *stream;
static siren_cancel_token *token;

static int32_t score(siren_input input)
{
    return siren_score(guard, &input, NULL, &out.result, error);
}

/* ---- callbacks: every call that started is waited for, and no other may call back ---- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t arrived;
    int started, called;
    /* Of the last one. */
    int32_t status;
    siren_result results[3];
    int32_t errors[3];
} taken = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0,
           {SIREN_RESULT_INIT, SIREN_RESULT_INIT, SIREN_RESULT_INIT}, {0}};

static void take(const void *user_data, int32_t status)
{
    CHECK(user_data == &taken);
    pthread_mutex_lock(&taken.lock);
    taken.called++;
    taken.status = status;
    pthread_cond_signal(&taken.arrived);
    pthread_mutex_unlock(&taken.lock);
}

static void take_score(void *user_data, int32_t status, const siren_result *result,
                       const siren_error *failure)
{
    CHECK(status == SIREN_OK ? result && !failure : !result && failure->status == status);
    if (result) {
        CHECK(result->struct_size == sizeof *result && result->status == SIREN_OK);
        taken.results[0] = *result;
    }
    take(user_data, status);
}

static void take_batch(void *user_data, int32_t status, const siren_result *const *results,
                       const siren_error *const *errors, size_t count,
                       const siren_error *failure)
{
    size_t i;
    CHECK(status == SIREN_OK ? !failure : !results && !errors && !count);
    CHECK(count <= 3);
    for (i = 0; i < count && i < 3; i++) {
        taken.results[i] = *results[i];
        taken.errors[i] = errors[i] ? errors[i]->status : SIREN_OK;
        CHECK(results[i]->struct_size == sizeof(siren_result));
        CHECK(taken.results[i].status == taken.errors[i]);
        CHECK(taken.errors[i] == SIREN_OK || taken.results[i].is_harmful == 1);
    }
    take(user_data, status);
}

static void take_push(void *user_data, int32_t status, const siren_push_result *result,
                      const siren_error *failure)
{
    CHECK(status == SIREN_OK ? result && !failure : !result && failure->status == status);
    take(user_data, status);
}

/* Waits for the callback of a call that returned `status`. */
static int32_t outcome(int32_t status)
{
    if (status == SIREN_OK) {
        pthread_mutex_lock(&taken.lock);
        taken.started++;
        while (taken.called < taken.started) {
            pthread_cond_wait(&taken.arrived, &taken.lock);
        }
        status = taken.status;
        pthread_mutex_unlock(&taken.lock);
    }
    return status;
}

/* ---- struct sizes, NULL and alignment, for every struct of every call ---- */

static void fill_input(void *bytes) { memcpy(bytes, &good, sizeof good); }

static void fill_score_options(void *bytes)
{
    siren_score_options options = SIREN_SCORE_OPTIONS_INIT;
    memcpy(bytes, &options, sizeof options);
}

static siren_open_options open_options;

static void fill_open_options(void *bytes) { memcpy(bytes, &open_options, sizeof open_options); }

static void fill_output(void *bytes) { (void)bytes; }

static int32_t input_of_score(void *p) { return siren_score(guard, p, NULL, &out.result, error); }

static int32_t input_of_batch(void *p)
{
    return siren_score_batch(guard, p, 1, NULL, out.results, out.errors, error);
}

static int32_t options_of_score(void *p)
{
    return siren_score(guard, &good, p, &out.result, error);
}

static int32_t options_of_batch(void *p)
{
    return siren_score_batch(guard, &good, 1, p, out.results, out.errors, error);
}

static int32_t options_of_open(void *p)
{
    int32_t status = siren_open(p, &out.handle, error);
    if (status == SIREN_OK) {
        CHECK(siren_free(out.handle) == SIREN_OK);
    }
    return status;
}

static int32_t result_of_score(void *p) { return siren_score(guard, &good, NULL, p, error); }

static int32_t result_of_batch(void *p)
{
    return siren_score_batch(guard, &good, 1, NULL, p, out.errors, error);
}

static int32_t errors_of_batch(void *p)
{
    siren_input failing = SIREN_INPUT_INIT;
    return siren_score_batch(guard, &failing, 1, NULL, out.results, p, error);
}

static int32_t info_of_info(void *p) { return siren_info(guard, p, error); }

static int32_t input_of_async(void *p)
{
    return outcome(siren_score_async(guard, p, NULL, take_score, &taken, error));
}

static int32_t options_of_async(void *p)
{
    return outcome(siren_score_async(guard, &good, p, take_score, &taken, error));
}

static int32_t input_of_batch_async(void *p)
{
    return outcome(siren_score_batch_async(guard, p, 1, NULL, take_batch, &taken, error));
}

static int32_t options_of_batch_async(void *p)
{
    return outcome(siren_score_batch_async(guard, &good, 1, p, take_batch, &taken, error));
}

static int32_t stats_of_stats(void *p) { return siren_stats(guard, p, error); }

static int32_t input_of_audit(void *p)
{
    return siren_audit_json(guard, p, &expected, NULL, 0, &out.length, error);
}

static int32_t result_of_audit(void *p)
{
    return siren_audit_json(guard, &good, p, NULL, 0, &out.length, error);
}

static void fill_expected(void *bytes) { memcpy(bytes, &expected, sizeof expected); }

static void fill_stream_options(void *bytes)
{
    siren_stream_options options = SIREN_STREAM_OPTIONS_INIT;
    memcpy(bytes, &options, sizeof options);
}

static int32_t options_of_stream(void *p)
{
    int32_t status = siren_stream_new(guard, p, &out.stream, error);
    if (status == SIREN_OK) {
        CHECK(siren_stream_free(out.stream) == SIREN_OK);
    }
    return status;
}

static void fill_push_options(void *bytes)
{
    siren_push_options options = SIREN_PUSH_OPTIONS_INIT;
    memcpy(bytes, &options, sizeof options);
}

static int32_t options_of_push(void *p)
{
    return siren_stream_push(stream, TEXT, sizeof TEXT - 1, p, &out.push, error);
}

static int32_t options_of_finish(void *p)
{
    return siren_stream_finish(stream, p, &out.push, error);
}

static int32_t options_of_push_async(void *p)
{
    return outcome(siren_stream_push_async(stream, TEXT, 1, p, take_push, &taken, error));
}

static int32_t options_of_finish_async(void *p)
{
    return outcome(siren_stream_finish_async(stream, p, take_push, &taken, error));
}

static int32_t result_of_push(void *p)
{
    return siren_stream_push(stream, TEXT, sizeof TEXT - 1, NULL, p, error);
}

static int32_t result_of_finish(void *p) { return siren_stream_finish(stream, NULL, p, error); }

static const struct kind kinds[] = {
    {"siren_input", sizeof(siren_input), 0, NEVER_NULL, fill_input, input_of_score},
    {"siren_input", sizeof(siren_input), 0, NEVER_NULL, fill_input, input_of_batch},
    {"siren_input", sizeof(siren_input), 0, NEVER_NULL, fill_input, input_of_async},
    {"siren_input", sizeof(siren_input), 0, NEVER_NULL, fill_input, input_of_batch_async},
    {"siren_input", sizeof(siren_input), 0, NEVER_NULL, fill_input, input_of_audit},
    {"siren_score_options", sizeof(siren_score_options), 0, MAY_BE_NULL, fill_score_options,
     options_of_score},
    {"siren_score_options", sizeof(siren_score_options), 0, MAY_BE_NULL, fill_score_options,
     options_of_batch},
    {"siren_score_options", sizeof(siren_score_options), 0, MAY_BE_NULL, fill_score_options,
     options_of_async},
    {"siren_score_options", sizeof(siren_score_options), 0, MAY_BE_NULL, fill_score_options,
     options_of_batch_async},
    {"siren_open_options", sizeof(siren_open_options), 0, NULL_IS_SLOW, fill_open_options,
     options_of_open},
    {"siren_stream_options", sizeof(siren_stream_options), 0, MAY_BE_NULL, fill_stream_options,
     options_of_stream},
    {"siren_result", sizeof(siren_result), 0, NEVER_NULL, fill_expected, result_of_audit},
    {"siren_result", sizeof(siren_result), 1, NEVER_NULL, fill_output, result_of_score},
    {"siren_result", sizeof(siren_result), 1, NEVER_NULL, fill_output, result_of_batch},
    {"siren_error", sizeof(siren_error), 1, MAY_BE_NULL, fill_output, errors_of_batch},
    {"siren_guard_info", sizeof(siren_guard_info), 1, NEVER_NULL, fill_output, info_of_info},
    {"siren_guard_stats", sizeof(siren_guard_stats), 1, NEVER_NULL, fill_output, stats_of_stats},
};

/* Of streams; streams.c has those that must be taken. */
static const struct kind stream_kinds[] = {
    {"siren_push_options", sizeof(siren_push_options), 0, MAY_BE_NULL, fill_push_options,
     options_of_push},
    {"siren_push_options", sizeof(siren_push_options), 0, MAY_BE_NULL, fill_push_options,
     options_of_finish},
    {"siren_push_options", sizeof(siren_push_options), 0, MAY_BE_NULL, fill_push_options,
     options_of_push_async},
    {"siren_push_options", sizeof(siren_push_options), 0, MAY_BE_NULL, fill_push_options,
     options_of_finish_async},
    {"siren_push_result", sizeof(siren_push_result), 1, NEVER_NULL, fill_output, result_of_push},
    {"siren_push_result", sizeof(siren_push_result), 1, NEVER_NULL, fill_output,
     result_of_finish},
};

/* ---- the error struct of every call ---- */

static void nothing(void *user_data, int32_t level, const char *message, size_t length)
{
    (void)user_data;
    (void)level;
    (void)message;
    (void)length;
}

/* Every call that takes an error; `wrong` makes it fail for a reason of its own. */
static int32_t with_error(int call, int wrong, siren_error *e)
{
    siren_guard *g = wrong ? (siren_guard *)(uintptr_t)1 : guard;
    siren_stream *s = wrong ? (siren_stream *)(uintptr_t)1 : stream;
    siren_cancel_token *t = wrong ? (siren_cancel_token *)(uintptr_t)1 : token;
    switch (call) {
    case 0:
        return siren_open(&open_options, wrong ? NULL : &out.handle, e);
    case 1:
        return siren_warmup(g, e);
    case 2:
        return siren_info(g, &out.info, e);
    case 3:
        return siren_info_json(g, NULL, 0, &out.length, e);
    case 4:
        return siren_log_set(nothing, NULL, wrong ? 6 : 0, e);
    case 5:
        return siren_score(g, &good, NULL, &out.result, e);
    case 6:
        return siren_score_batch(g, &good, 1, NULL, out.results, out.errors, e);
    case 7:
        return siren_score_async(g, &good, NULL, take_score, &taken, e);
    case 8:
        return siren_score_batch_async(g, &good, 1, NULL, take_batch, &taken, e);
    case 9:
        return siren_stats(g, &out.stats, e);
    case 10:
        return siren_stats_prometheus(g, NULL, 0, &out.length, e);
    case 11:
        return siren_audit_json(g, &good, &expected, NULL, 0, &out.length, e);
    case 12:
        return siren_cancel_token_new(wrong ? NULL : &out.token, e);
    case 13:
        return siren_cancel(t, e);
    case 14:
        return siren_stream_new(g, NULL, &out.stream, e);
    case 15:
        return siren_stream_push(s, TEXT, 1, NULL, &out.push, e);
    case 16:
        return siren_stream_finish(s, NULL, &out.push, e);
    case 17:
        return siren_stream_push_async(s, TEXT, 1, NULL, take_push, &taken, e);
    case 18:
        return siren_stream_finish_async(s, NULL, take_push, &taken, e);
    case 19:
        return siren_stream_reset(s, e);
    default:
        return siren_stream_fork(s, &out.stream, e);
    }
}

static void sweep_error_struct(void)
{
    const uint32_t wrong[] = {0, 4, sizeof(siren_error) - 1, 1u << 20, UINT32_MAX};
    const size_t sizes[] = {sizeof(siren_error), sizeof(siren_error) + 8};
    int call;
    size_t i;
    for (call = 0; call <= 20; call++) {
        for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
            void *only_size = edge(4);
            set_size(only_size, wrong[i]);
            arm(NULL);
            check_refused(with_error(call, 0, only_size), SIREN_INVALID_ARGUMENT, "", __FILE__,
                          __LINE__, "an error struct of a wrong size");
            CHECK(memcmp(only_size, &wrong[i], 4) == 0);
        }
        for (i = 0; i < 2 + 7; i++) {
            /* The right size, a larger one, and the right one at odd addresses. */
            size_t size = i < 2 ? sizes[i] : sizeof(siren_error);
            unsigned char *bytes = (unsigned char *)edge(size + 8) + (i < 2 ? 8 : i - 1);
            siren_error read;
            memset(bytes, FILL, size);
            set_size(bytes, (uint32_t)size);
            arm(NULL);
            CHECK(with_error(call, 1, (siren_error *)(void *)bytes) != SIREN_OK);
            CHECK(memcmp(&out, &armed, sizeof out) == 0);
            memcpy(&read, bytes, sizeof read);
            CHECK(read.struct_size == size);
            CHECK(read.status == SIREN_INVALID_ARGUMENT || read.status == SIREN_INVALID_HANDLE);
            CHECK(read.message_length == strlen(read.message) && read.message_length > 0);
            CHECK(all_are(bytes + sizeof read, size - sizeof read, FILL));
        }
    }
}

/* ---- *_init ---- */

static int32_t init(int call, void *bytes, uint32_t size)
{
    switch (call) {
    case 0:
        return siren_error_init(bytes, size);
    case 1:
        return siren_info_init(bytes, size);
    case 2:
        return siren_open_options_init(bytes, size);
    case 3:
        return siren_input_init(bytes, size);
    case 4:
        return siren_score_options_init(bytes, size);
    case 5:
        return siren_result_init(bytes, size);
    case 6:
        return siren_stream_options_init(bytes, size);
    case 7:
        return siren_push_options_init(bytes, size);
    case 8:
        return siren_push_result_init(bytes, size);
    default:
        return siren_stats_init(bytes, size);
    }
}

static void sweep_init(void)
{
    const size_t firsts[] = {sizeof(siren_error), sizeof(siren_guard_info),
                             sizeof(siren_open_options), sizeof(siren_input),
                             sizeof(siren_score_options), sizeof(siren_result),
                             sizeof(siren_stream_options), sizeof(siren_push_options),
                             sizeof(siren_push_result), sizeof(siren_guard_stats)};
    int call;
    size_t i;
    for (call = 0; call < 10; call++) {
        size_t first = firsts[call];
        uint32_t wrong[] = {0, 4, 0, (1u << 16) + 1, 1u << 20, UINT32_MAX};
        wrong[2] = (uint32_t)first - 1;
        for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
            unsigned char *bytes = edge(8);
            memset(bytes, FILL, 8);
            CHECK(init(call, bytes, wrong[i]) == SIREN_INVALID_ARGUMENT);
            CHECK(all_are(bytes, 8, FILL));
        }
        CHECK(init(call, NULL, (uint32_t)first) == SIREN_INVALID_ARGUMENT);
        CHECK(init(call, NULL, 0) == SIREN_INVALID_ARGUMENT);
        for (i = 0; i < 8; i++) {
            size_t size = first + (i == 0 ? 8 : 0);
            unsigned char *bytes = (unsigned char *)edge(size + 8) + i;
            uint32_t written;
            memset(bytes, FILL, size);
            CHECK(init(call, bytes, (uint32_t)size) == SIREN_OK);
            memcpy(&written, bytes, sizeof written);
            CHECK(written == size);
            CHECK(all_are(bytes + 4, size - 4, 0));
        }
    }
}

/* ---- inputs: alone, and as one of a batch ---- */

/* `input` is refused alone; in a batch it is the only one that fails. */
static void bad_input(int line, siren_input input, int32_t status, const char *words)
{
    siren_input inputs[3];
    siren_result untouched;
    int with_errors;
    arm(&place);
    check_refused(score(input), status, words, __FILE__, line, "a bad input");
    arm(NULL);
    check_refused(score(input), status, words, __FILE__, line, "a bad input, no error struct");

    inputs[0] = inputs[2] = good;
    inputs[1] = input;
    for (with_errors = 0; with_errors < 2; with_errors++) {
        ACCEPTED(siren_score_batch(guard, inputs, 3, NULL, out.results,
                                   with_errors ? out.errors : NULL, error));
        CHECK(memcmp(&out.results[0], &expected, sizeof expected) == 0);
        CHECK(memcmp(&out.results[2], &expected, sizeof expected) == 0);
        CHECK(check_that(out.results[1].status == status, "sweep.c", line, "status in a batch"));
        memcpy(&untouched, &out.results[1], sizeof untouched);
        CHECK(untouched.is_harmful == 1);
        untouched.status = armed.results[1].status;
        untouched.is_harmful = armed.results[1].is_harmful;
        CHECK(memcmp(&untouched, &armed.results[1], sizeof untouched) == 0);
        if (with_errors) {
            CHECK(out.errors[1].status == status);
            CHECK(check_that(strstr(out.errors[1].message, words) != NULL, "sweep.c", line,
                             out.errors[1].message));
            memcpy(&out.errors[1], &armed.errors[1], sizeof out.errors[1]);
        }
        CHECK(memcmp(out.errors, armed.errors, sizeof out.errors) == 0);
    }

    /* Alone it fails by the call or by the callback; in a batch by itself. */
    arm(&place);
    CHECK(check_that(outcome(siren_score_async(guard, &input, NULL, take_score, &taken, error))
                     == status, __FILE__, line, "an asynchronous call"));
    ACCEPTED(outcome(siren_score_batch_async(guard, inputs, 3, NULL, take_batch, &taken, error)));
    CHECK(memcmp(&taken.results[0], &expected, sizeof expected) == 0);
    CHECK(memcmp(&taken.results[2], &expected, sizeof expected) == 0);
    CHECK(taken.errors[0] == SIREN_OK && taken.errors[2] == SIREN_OK);
    CHECK(taken.errors[1] == status && taken.results[1].score == 0.0);
}

#define BAD_INPUT(INPUT, STATUS, WORDS) bad_input(__LINE__, INPUT, STATUS, WORDS)

static siren_text *field_of(siren_input *input, int field)
{
    return field == 0 ? &input->text : field == 1 ? &input->prompt : &input->response;
}

static siren_text bytes_of(const char *data, size_t length)
{
    siren_text text;
    text.data = data;
    text.length = length;
    return text;
}

static void sweep_inputs(void)
{
    static const char *const names[] = {"text", "prompt", "response"};
    static const struct {
        const char *bytes;
        size_t length;
        int at;
    } invalid[] = {
        {"abc\xff", 4, 3},          {"\x80", 1, 0},         {"ab\xc3", 3, 2},
        {"\xed\xa0\x80", 3, 0},     {"x\xc0\x80", 3, 1},    {"x\xe2\x82y", 4, 1},
        {"\xf4\x90\x80\x80", 4, 0}, {"a\0b\0\xfe", 5, 4},
    };
    static const size_t huge[] = {SIZE_MAX, SIZE_MAX - 7, (size_t)1 << 40, (4u << 20) + 1};
    char words[64];
    int field;
    size_t i;

    for (field = 0; field < 3; field++) {
        siren_input input = SIREN_INPUT_INIT;
        for (i = 0; i < sizeof invalid / sizeof *invalid; i++) {
            *field_of(&input, field) = bytes_of(invalid[i].bytes, invalid[i].length);
            sprintf(words, "%s is not valid UTF-8 at byte %d", names[field], invalid[i].at);
            BAD_INPUT(input, SIREN_INVALID_UTF8, words);
        }
        for (i = 0; i < sizeof huge / sizeof *huge; i++) {
            /* Over the limit: nothing is read, whether or not there is something. */
            *field_of(&input, field) = bytes_of(edge(1), huge[i]);
            sprintf(words, "%s has %zu bytes", names[field], huge[i]);
            BAD_INPUT(input, SIREN_LIMIT_EXCEEDED, words);
            *field_of(&input, field) = bytes_of(NULL, huge[i]);
            sprintf(words, "%s is NULL with a length of %zu", names[field], huge[i]);
            BAD_INPUT(input, SIREN_INVALID_ARGUMENT, words);
        }
        *field_of(&input, field) = bytes_of(NULL, 1);
        sprintf(words, "%s is NULL with a length of 1", names[field]);
        BAD_INPUT(input, SIREN_INVALID_ARGUMENT, words);
    }

    {
        siren_input input = good;
        input.prompt = text_of(OTHER);
        BAD_INPUT(input, SIREN_INVALID_ARGUMENT, "text was given together with prompt");
        input.response = text_of(OTHER);
        BAD_INPUT(input, SIREN_INVALID_ARGUMENT, "text was given together with prompt");
        input.prompt = bytes_of(NULL, 0);
        BAD_INPUT(input, SIREN_INVALID_ARGUMENT, "text was given together with prompt");
        /* Empty is not absent. */
        input.text = bytes_of("", 0);
        BAD_INPUT(input, SIREN_INVALID_ARGUMENT, "text was given together with prompt");
    }
    {
        siren_input input = SIREN_INPUT_INIT;
        BAD_INPUT(input, SIREN_INVALID_ARGUMENT, "all absent");
        input = good;
        input.reserved = 1;
        BAD_INPUT(input, SIREN_INVALID_ARGUMENT, "reserved");
    }
}

static void sweep_good_inputs(void)
{
    double joined = score_of(guard, OTHER "\n" TEXT);
    double space = score_of(guard, " ");
    siren_input input = SIREN_INPUT_INIT;
    int field;

    CHECK(expected.status == SIREN_OK && expected.threshold == 0.5 && expected.truncated == 0);
    CHECK(expected.score >= 0.0 && expected.score <= 1.0 && expected.tokens > 3);
    CHECK(expected.is_harmful == (expected.score >= expected.threshold));

    input.prompt = text_of(OTHER);
    input.response = text_of(TEXT);
    ACCEPTED(score(input));
    CHECK(out.result.score == joined);
    for (field = 0; field < 3; field++) {
        siren_input alone = SIREN_INPUT_INIT;
        siren_text *text = field_of(&alone, field);
        char *place_of_text;
        /* The last byte lies before a forbidden page: no NUL is looked for. */
        place_of_text = edge(strlen(TEXT));
        memcpy(place_of_text, TEXT, strlen(TEXT));
        *text = bytes_of(place_of_text, strlen(TEXT));
        ACCEPTED(score(alone));
        CHECK(memcmp(&out.result, &expected, sizeof expected) == 0);
        /* Empty text is one space, and its address is not followed. */
        *text = bytes_of("", 0);
        ACCEPTED(score(alone));
        CHECK(out.result.score == space);
        *text = bytes_of((char *)edge(1) + 1, 0);
        ACCEPTED(score(alone));
        CHECK(out.result.score == space);
        /* NUL is a character like others. */
        *text = bytes_of("a\0b", 3);
        ACCEPTED(score(alone));
        CHECK(out.result.score != score_of(guard, "a"));
    }
}

static void sweep_thresholds(void)
{
    const double bad[] = {NAN, -0.1, 1.1, INFINITY, -INFINITY, -1e-300, 1.0 + 1e-15};
    const double fine[] = {0.0, 1.0, 0.3, -0.0, 1e-300};
    siren_score_options options = SIREN_SCORE_OPTIONS_INIT;
    size_t i;
    options.has_threshold = 1;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        options.threshold = bad[i];
        REFUSED(SIREN_INVALID_ARGUMENT, "threshold is ", options_of_score(&options));
        REFUSED(SIREN_INVALID_ARGUMENT, "threshold is ", options_of_batch(&options));
    }
    for (i = 0; i < sizeof fine / sizeof *fine; i++) {
        options.threshold = fine[i];
        ACCEPTED(options_of_score(&options));
        CHECK(out.result.threshold == fine[i] && out.result.score == expected.score);
        CHECK(out.result.is_harmful == (expected.score >= fine[i]));
        ACCEPTED(options_of_batch(&options));
        CHECK(out.results[0].threshold == fine[i] && out.results[0].score == expected.score);
    }
    options.threshold = expected.score;
    ACCEPTED(options_of_score(&options));
    CHECK(out.result.is_harmful == 1);
    options.threshold = nextafter(expected.score, 1.0);
    ACCEPTED(options_of_score(&options));
    CHECK(out.result.is_harmful == 0);
    for (i = 2; i < 34; i++) {
        options.has_threshold = i < 33 ? 1u << (i - 1) : UINT32_MAX;
        REFUSED(SIREN_INVALID_ARGUMENT, "has_threshold is ", options_of_score(&options));
        REFUSED(SIREN_INVALID_ARGUMENT, "has_threshold is ", options_of_batch(&options));
    }
    options.has_threshold = 0;
    options.threshold = NAN;
    ACCEPTED(options_of_score(&options));
    CHECK(out.result.threshold == 0.5);
}

/* What else options of calls can hold. */
static void sweep_call_options(void)
{
    const uint32_t no_flag[] = {2, 1u << 31, UINT32_MAX};
    siren_score_options score_options = SIREN_SCORE_OPTIONS_INIT;
    siren_stream_options stream_options = SIREN_STREAM_OPTIONS_INIT;
    siren_push_options push_options = SIREN_PUSH_OPTIONS_INIT;
    const struct {
        const char *words;
        uint32_t *flag;
        void *options;
        int32_t (*calls[4])(void *options);
    } flags[] = {
        {"wait is ", &score_options.wait, &score_options,
         {options_of_score, options_of_batch, options_of_async, options_of_batch_async}},
        {"windows is ", &score_options.windows, &score_options,
         {options_of_score, options_of_batch, options_of_async, options_of_batch_async}},
        {"has_threshold is ", &stream_options.has_threshold, &stream_options,
         {options_of_stream, NULL, NULL, NULL}},
        {"windows is ", &stream_options.windows, &stream_options,
         {options_of_stream, NULL, NULL, NULL}},
        {"reserved is not 0", &stream_options.reserved, &stream_options,
         {options_of_stream, NULL, NULL, NULL}},
        {"wait is ", &push_options.wait, &push_options,
         {options_of_push, options_of_finish, options_of_push_async, options_of_finish_async}},
    };
    size_t i, value, call;
    for (i = 0; i < sizeof flags / sizeof *flags; i++) {
        for (value = 0; value < 3; value++) {
            *flags[i].flag = no_flag[value];
            for (call = 0; call < 4 && flags[i].calls[call]; call++) {
                REFUSED(SIREN_INVALID_ARGUMENT, flags[i].words,
                        flags[i].calls[call](flags[i].options));
            }
        }
        *flags[i].flag = 0;
    }
    /* A time that no clock reaches is no deadline; sizes of windows mean nothing without them. */
    score_options.timeout_ms = UINT64_MAX;
    score_options.wait = 1;
    score_options.window_tokens = score_options.window_stride = UINT64_MAX;
    score_options.cancel = token;
    ACCEPTED(options_of_score(&score_options));
    CHECK(memcmp(&out.result, &expected, sizeof expected) == 0);
    ACCEPTED(options_of_async(&score_options));
    CHECK(memcmp(&taken.results[0], &expected, sizeof expected) == 0);

    push_options.token_scores_capacity = 7;
    REFUSED(SIREN_INVALID_ARGUMENT, "token_scores is NULL with a capacity of 7",
            options_of_push(&push_options));
    REFUSED(SIREN_INVALID_ARGUMENT, "token_scores is NULL with a capacity of 7",
            options_of_finish(&push_options));
    REFUSED(SIREN_INVALID_ARGUMENT, "token_scores is NULL with a capacity of 7",
            options_of_push_async(&push_options));
    REFUSED(SIREN_INVALID_ARGUMENT, "token_scores is NULL with a capacity of 7",
            options_of_finish_async(&push_options));
}

/* ---- handles ---- */

static void bad_guard(siren_guard *handle, int32_t status, const char *words)
{
    REFUSED(status, words, siren_score(handle, &good, NULL, &out.result, error));
    REFUSED(status, words,
            siren_score_batch(handle, &good, 1, NULL, out.results, out.errors, error));
    REFUSED(status, words, siren_score_batch(handle, NULL, 0, NULL, NULL, NULL, error));
    REFUSED(status, words, siren_score_async(handle, &good, NULL, take_score, &taken, error));
    REFUSED(status, words,
            siren_score_batch_async(handle, &good, 1, NULL, take_batch, &taken, error));
    REFUSED(status, words, siren_warmup(handle, error));
    REFUSED(status, words, siren_info(handle, &out.info, error));
    REFUSED(status, words,
            siren_info_json(handle, out.json, sizeof out.json, &out.length, error));
    REFUSED(status, words, siren_stats(handle, &out.stats, error));
    REFUSED(status, words,
            siren_stats_prometheus(handle, out.json, sizeof out.json, &out.length, error));
    REFUSED(status, words, siren_audit_json(handle, &good, &expected, out.json, sizeof out.json,
                                            &out.length, error));
    REFUSED(status, words, siren_stream_new(handle, NULL, &out.stream, error));
    CHECK(siren_free(handle) == (handle ? status : SIREN_OK));
}

static void bad_stream(siren_stream *handle, int32_t status, const char *words)
{
    REFUSED(status, words,
            siren_stream_push(handle, TEXT, sizeof TEXT - 1, NULL, &out.push, error));
    REFUSED(status, words, siren_stream_finish(handle, NULL, &out.push, error));
    REFUSED(status, words,
            siren_stream_push_async(handle, TEXT, 1, NULL, take_push, &taken, error));
    REFUSED(status, words,
            siren_stream_finish_async(handle, NULL, take_push, &taken, error));
    REFUSED(status, words, siren_stream_reset(handle, error));
    REFUSED(status, words, siren_stream_fork(handle, &out.stream, error));
    CHECK(siren_stream_free(handle) == (handle ? status : SIREN_OK));
}

static void bad_token(siren_cancel_token *handle, int32_t status, const char *words)
{
    siren_score_options options = SIREN_SCORE_OPTIONS_INIT;
    siren_push_options push_options = SIREN_PUSH_OPTIONS_INIT;
    REFUSED(status, words, siren_cancel(handle, error));
    CHECK(siren_cancel_token_free(handle) == (handle ? status : SIREN_OK));
    if (handle) {
        options.cancel = push_options.cancel = handle;
        REFUSED(status, words, options_of_score(&options));
        REFUSED(status, words, options_of_batch(&options));
        REFUSED(status, words, options_of_async(&options));
        REFUSED(status, words, options_of_batch_async(&options));
        REFUSED(status, words, options_of_push(&push_options));
        REFUSED(status, words, options_of_finish(&push_options));
        REFUSED(status, words, options_of_push_async(&push_options));
        REFUSED(status, words, options_of_finish_async(&push_options));
    }
}

static void sweep_handles(void)
{
    const void *no_handles[] = {(void *)(uintptr_t)1, &good, edge(1), (void *)UINTPTR_MAX};
    siren_guard *first = NULL, *second = NULL;
    siren_stream *streams[3];
    siren_cancel_token *tokens[2];
    size_t i;
    int bit;

    bad_guard(NULL, SIREN_INVALID_ARGUMENT, "guard is NULL");
    bad_stream(NULL, SIREN_INVALID_ARGUMENT, "stream is NULL");
    bad_token(NULL, SIREN_INVALID_ARGUMENT, "cancel token is NULL");
    for (i = 0; i < sizeof no_handles / sizeof *no_handles; i++) {
        bad_guard((siren_guard *)no_handles[i], SIREN_INVALID_HANDLE, "not a guard's handle");
        bad_stream((siren_stream *)no_handles[i], SIREN_INVALID_HANDLE, "not a stream's handle");
        bad_token((siren_cancel_token *)no_handles[i], SIREN_INVALID_HANDLE,
                  "not a cancel token's handle");
    }
    /* Live handles of every other kind. */
    bad_guard((siren_guard *)stream, SIREN_INVALID_HANDLE, "not a guard's handle");
    bad_guard((siren_guard *)token, SIREN_INVALID_HANDLE, "not a guard's handle");
    bad_stream((siren_stream *)guard, SIREN_INVALID_HANDLE, "not a stream's handle");
    bad_stream((siren_stream *)token, SIREN_INVALID_HANDLE, "not a stream's handle");
    bad_token((siren_cancel_token *)guard, SIREN_INVALID_HANDLE, "not a cancel token's handle");
    bad_token((siren_cancel_token *)stream, SIREN_INVALID_HANDLE, "not a cancel token's handle");
    for (bit = 0; bit < 64; bit++) {
        /* One wrong bit: another slot, generation, process or kind. */
        int32_t status = bit >= 48 && bit < 56 ? SIREN_FORKED : SIREN_INVALID_HANDLE;
        uintptr_t flip = (uintptr_t)1 << bit;
        bad_guard((siren_guard *)((uintptr_t)guard ^ flip), status, "guard");
        bad_stream((siren_stream *)((uintptr_t)stream ^ flip), status, "stream");
        bad_token((siren_cancel_token *)((uintptr_t)token ^ flip), status, "cancel token");
    }

    ACCEPTED(siren_open(&open_options, &first, error));
    CHECK(score_of(first, TEXT) == expected.score);
    CHECK(first != guard);
    CHECK(siren_free(first) == SIREN_OK);
    bad_guard(first, SIREN_INVALID_HANDLE, "guard was freed, or never opened");
    /* The slot is used again, the handle is not. */
    ACCEPTED(siren_open(&open_options, &second, error));
    CHECK(second != first);
    bad_guard(first, SIREN_INVALID_HANDLE, "guard was freed, or never opened");
    CHECK(score_of(second, TEXT) == expected.score);
    CHECK(siren_free(second) == SIREN_OK);
    CHECK(siren_free(second) == SIREN_INVALID_HANDLE);
    CHECK(siren_free(NULL) == SIREN_OK);
    ACCEPTED(siren_warmup(guard, error));

    for (i = 0; i < 2; i++) {
        ACCEPTED(siren_cancel_token_new(&tokens[i], error));
        CHECK(siren_cancel_token_free(tokens[i]) == SIREN_OK);
        bad_token(tokens[i], SIREN_INVALID_HANDLE, "cancel token was freed, or never opened");
        ACCEPTED(siren_stream_new(guard, NULL, &streams[i], error));
        CHECK(siren_stream_free(streams[i]) == SIREN_OK);
        bad_stream(streams[i], SIREN_INVALID_HANDLE, "stream was freed, or never opened");
    }
    CHECK(tokens[0] != tokens[1] && streams[0] != streams[1]);
    bad_token(tokens[0], SIREN_INVALID_HANDLE, "cancel token was freed, or never opened");
    bad_stream(streams[0], SIREN_INVALID_HANDLE, "stream was freed, or never opened");
    REFUSED(SIREN_INVALID_ARGUMENT, "token is NULL", siren_cancel_token_new(NULL, error));

    /* Of a stream and its fork each is freed by itself. */
    ACCEPTED(siren_stream_new(guard, NULL, &streams[0], error));
    ACCEPTED(siren_stream_fork(streams[0], &streams[1], error));
    ACCEPTED(siren_stream_fork(streams[1], &streams[2], error));
    CHECK(streams[0] != streams[1] && streams[1] != streams[2]);
    for (i = 0; i < 3; i++) {
        ACCEPTED(siren_stream_reset(streams[i], error));
        CHECK(siren_stream_free(streams[i]) == SIREN_OK);
        bad_stream(streams[i], SIREN_INVALID_HANDLE, "stream was freed, or never opened");
    }
}

/* Many handles at once: each is its own, and taking one is no search. */
static void sweep_many_handles(void)
{
    enum { MANY = 20000 };
    static siren_cancel_token *tokens[MANY];
    int round, i;
    for (round = 0; round < 2; round++) {
        for (i = 0; i < MANY; i++) {
            CHECK(siren_cancel_token_new(&tokens[i], NULL) == SIREN_OK);
        }
        for (i = 1; i < MANY; i++) {
            CHECK(tokens[i] != tokens[i - 1]);
        }
        /* From both ends, so that slots come back in another order. */
        for (i = 0; i < MANY; i++) {
            int at = i % 2 ? MANY - 1 - i / 2 : i / 2;
            CHECK(siren_cancel(tokens[at], NULL) == SIREN_OK);
            CHECK(siren_cancel_token_free(tokens[at]) == SIREN_OK);
            CHECK(siren_cancel_token_free(tokens[at]) == SIREN_INVALID_HANDLE);
        }
    }
}

/* ---- streams: what is refused before anything is scored ---- */

static int32_t push(const char *data, size_t length)
{
    return siren_stream_push(stream, data, length, NULL, &out.push, error);
}

static int32_t push_async(const char *data, size_t length)
{
    return siren_stream_push_async(stream, data, length, NULL, take_push, &taken, error);
}

static void sweep_streams(void)
{
    static const size_t huge[] = {SIZE_MAX, SIZE_MAX - 7, (size_t)1 << 40, (4u << 20) + 1};
    siren_stream_options options = SIREN_STREAM_OPTIONS_INIT;
    char words[96];
    size_t i;
    REFUSED(SIREN_INVALID_ARGUMENT, "stream is NULL", siren_stream_new(guard, NULL, NULL, error));
    REFUSED(SIREN_INVALID_ARGUMENT, "stream is NULL", siren_stream_fork(stream, NULL, error));
    for (i = 0; i < sizeof huge / sizeof *huge; i++) {
        sprintf(words, "data has %zu bytes, more than the limit of 4194304", huge[i]);
        REFUSED(SIREN_LIMIT_EXCEEDED, words, push(edge(1), huge[i]));
        REFUSED(SIREN_LIMIT_EXCEEDED, words, push_async(edge(1), huge[i]));
        sprintf(words, "data is NULL with a length of %zu", huge[i]);
        REFUSED(SIREN_INVALID_ARGUMENT, words, push(NULL, huge[i]));
        REFUSED(SIREN_INVALID_ARGUMENT, words, push_async(NULL, huge[i]));
        sprintf(words, "prompt has %zu bytes", huge[i]);
        options.prompt = bytes_of(edge(1), huge[i]);
        REFUSED(SIREN_LIMIT_EXCEEDED, words, options_of_stream(&options));
    }
    REFUSED(SIREN_INVALID_ARGUMENT, "data is NULL with a length of 1", push(NULL, 1));
    options.prompt = bytes_of(NULL, 1);
    REFUSED(SIREN_INVALID_ARGUMENT, "prompt is NULL", options_of_stream(&options));
    options.prompt = bytes_of("ab\xc3", 3);
    REFUSED(SIREN_INVALID_UTF8, "prompt is not valid UTF-8 at byte 2",
            options_of_stream(&options));
}

static void sweep_callbacks(void)
{
    REFUSED(SIREN_INVALID_ARGUMENT, "callback is NULL",
            siren_score_async(guard, &good, NULL, NULL, &taken, error));
    REFUSED(SIREN_INVALID_ARGUMENT, "callback is NULL",
            siren_score_batch_async(guard, &good, 1, NULL, NULL, &taken, error));
    REFUSED(SIREN_INVALID_ARGUMENT, "callback is NULL",
            siren_stream_push_async(stream, TEXT, 1, NULL, NULL, &taken, error));
    REFUSED(SIREN_INVALID_ARGUMENT, "callback is NULL",
            siren_stream_finish_async(stream, NULL, NULL, &taken, error));
    ACCEPTED(input_of_async(&good));
    CHECK(memcmp(&taken.results[0], &expected, sizeof expected) == 0);
    /* A batch of nothing still calls back. */
    ACCEPTED(outcome(siren_score_batch_async(guard, NULL, 0, NULL, take_batch, &taken, error)));
    REFUSED(SIREN_LIMIT_EXCEEDED, "more than the limit of 16384",
            siren_score_batch_async(guard, NULL, 16385, NULL, take_batch, &taken, error));
    REFUSED(SIREN_INVALID_ARGUMENT, "siren_input is NULL",
            siren_score_batch_async(guard, NULL, 1, NULL, take_batch, &taken, error));
}

/* ---- batches ---- */

static void sweep_batches(void)
{
    static const char *const texts[] = {TEXT, OTHER, "", " ", "I hate Mondays", TEXT, "\t",
                                        "a longer text, so that the lengths differ: a b c d e f"};
    siren_input inputs[8];
    siren_input failing = SIREN_INPUT_INIT;
    const size_t over[] = {SIZE_MAX, SIZE_MAX / 56, (size_t)1 << 40, 16385};
    size_t i;
    void *forbidden = (char *)edge(8) + 8;

    for (i = 0; i < 8; i++) {
        inputs[i] = input_of(texts[i]);
    }
    ACCEPTED(siren_score_batch(guard, inputs, 8, NULL, out.results, out.errors, error));
    for (i = 0; i < 8; i++) {
        CHECK(out.results[i].status == SIREN_OK);
        CHECK(out.results[i].score == score_of(guard, texts[i]));
    }
    CHECK(memcmp(out.errors, armed.errors, sizeof out.errors) == 0);
    CHECK(memcmp(&out.results[0], &expected, sizeof expected) == 0);

    /* No array is touched for nothing, nor for too much. */
    ACCEPTED(siren_score_batch(guard, NULL, 0, NULL, NULL, NULL, error));
    ACCEPTED(siren_score_batch(guard, forbidden, 0, NULL, forbidden, forbidden, error));
    for (i = 0; i < sizeof over / sizeof *over; i++) {
        REFUSED(SIREN_LIMIT_EXCEEDED, "more than the limit of 16384",
                siren_score_batch(guard, forbidden, over[i], NULL, forbidden, forbidden, error));
        REFUSED(SIREN_LIMIT_EXCEEDED, "more than the limit of 16384",
                siren_score_batch(guard, NULL, over[i], NULL, NULL, NULL, error));
    }
    REFUSED(SIREN_INVALID_ARGUMENT, "siren_input is NULL",
            siren_score_batch(guard, NULL, 8, NULL, out.results, out.errors, error));
    REFUSED(SIREN_INVALID_ARGUMENT, "siren_result is NULL",
            siren_score_batch(guard, inputs, 8, NULL, NULL, out.errors, error));

    /* Elements of different sizes are a mistake somewhere. */
    inputs[2].struct_size += 8;
    REFUSED(SIREN_INVALID_ARGUMENT, "siren_input[2] is 64, that of the first is 56",
            siren_score_batch(guard, inputs, 8, NULL, out.results, out.errors, error));
    inputs[2].struct_size -= 8;
    for (i = 1; i < 8; i++) {
        arm(&place);
        armed.results[i].struct_size = out.results[i].struct_size = 0;
        check_refused(siren_score_batch(guard, inputs, 8, NULL, out.results, out.errors, error),
                      SIREN_INVALID_ARGUMENT, "siren_result[", __FILE__, __LINE__, "a result of size 0");
        arm(&place);
        armed.errors[i].struct_size = out.errors[i].struct_size = 0;
        check_refused(siren_score_batch(guard, inputs, 8, NULL, out.results, out.errors, error),
                      SIREN_INVALID_ARGUMENT, "siren_error[", __FILE__, __LINE__, "an error of size 0");
    }

    /* All of them fail: the call itself does not. */
    for (i = 0; i < 8; i++) {
        inputs[i] = failing;
    }
    ACCEPTED(siren_score_batch(guard, inputs, 8, NULL, out.results, out.errors, error));
    for (i = 0; i < 8; i++) {
        CHECK(out.results[i].status == SIREN_INVALID_ARGUMENT && out.results[i].is_harmful == 1);
        CHECK(out.errors[i].status == SIREN_INVALID_ARGUMENT);
    }
}

/* Arrays of a newer caller's larger structs: every element is found, its tail left alone. */
static void sweep_larger_elements(void)
{
    enum { COUNT = 5, IN = sizeof(siren_input) + 16, OUT = sizeof(siren_result) + 24,
           ERR = sizeof(siren_error) + 8 };
    static const char *const texts[COUNT] = {TEXT, NULL, OTHER, NULL, TEXT};
    unsigned char *inputs = edge(COUNT * IN);
    unsigned char *results = edge(COUNT * OUT);
    unsigned char *errors = edge(COUNT * ERR);
    size_t i;
    memset(inputs, 0, COUNT * IN);
    memset(results, FILL, COUNT * OUT);
    memset(errors, FILL, COUNT * ERR);
    for (i = 0; i < COUNT; i++) {
        siren_input input = input_of(texts[i]);
        memcpy(inputs + i * IN, &input, sizeof input);
        set_size(inputs + i * IN, IN);
        set_size(results + i * OUT, OUT);
        set_size(errors + i * ERR, ERR);
    }
    ACCEPTED(siren_score_batch(guard, (void *)inputs, COUNT, NULL, (void *)results,
                               (void *)errors, error));
    for (i = 0; i < COUNT; i++) {
        siren_result result;
        siren_error failure;
        memcpy(&result, results + i * OUT, sizeof result);
        memcpy(&failure, errors + i * ERR, sizeof failure);
        CHECK(result.struct_size == OUT && failure.struct_size == ERR);
        CHECK(result.status == (texts[i] ? SIREN_OK : SIREN_INVALID_ARGUMENT));
        if (texts[i]) {
            CHECK(result.score == score_of(guard, texts[i]));
        } else {
            CHECK(failure.status == SIREN_INVALID_ARGUMENT);
        }
        CHECK(all_are(results + i * OUT + sizeof result, OUT - sizeof result, FILL));
        CHECK(all_are(errors + i * ERR + sizeof failure, ERR - sizeof failure, FILL));
    }
    inputs[3 * IN - 1] = 1;
    REFUSED(SIREN_INVALID_ARGUMENT, "this version of the library",
            siren_score_batch(guard, (void *)inputs, COUNT, NULL, out.results, out.errors, error));
}

/* ---- opening ---- */

static siren_text *open_text(siren_open_options *options, int field)
{
    siren_text *texts[] = {&options->model,        &options->backbone,  &options->device,
                           &options->dtype,        &options->cache_dir, &options->hub_endpoint,
                           &options->hub_token,    &options->data_dir,
                           &options->packed_cache};
    return texts[field];
}

static int32_t open_with(siren_open_options options)
{
    return siren_open(&options, &out.handle, error);
}

static void sweep_open(const char *model)
{
    static const char *const names[] = {"model",     "backbone",     "device",    "dtype",
                                        "cache_dir", "hub_endpoint", "hub_token", "data_dir",
                                        "packed_cache"};
    siren_open_options options;
    char words[80], long_name[1 << 16];
    int field, without_hub;

    REFUSED(SIREN_INVALID_ARGUMENT, "guard is NULL", siren_open(&open_options, NULL, error));
    REFUSED(SIREN_INVALID_ARGUMENT, "guard is NULL", siren_open(NULL, NULL, error));
    for (field = 0; field < 9; field++) {
        options = open_options;
        *open_text(&options, field) = bytes_of("ab\xff", 3);
        sprintf(words, "%s is not valid UTF-8 at byte 2", names[field]);
        REFUSED(SIREN_INVALID_UTF8, words, open_with(options));
        *open_text(&options, field) = bytes_of("a\0b", 3);
        sprintf(words, "%s holds a NUL byte", names[field]);
        REFUSED(SIREN_INVALID_ARGUMENT, words, open_with(options));
        *open_text(&options, field) = bytes_of("", 0);
        sprintf(words, "%s is empty", names[field]);
        REFUSED(SIREN_INVALID_ARGUMENT, words, open_with(options));
        *open_text(&options, field) = bytes_of(NULL, 3);
        sprintf(words, "%s is NULL with a length of 3", names[field]);
        REFUSED(SIREN_INVALID_ARGUMENT, words, open_with(options));
        *open_text(&options, field) = bytes_of(edge(1), SIZE_MAX);
        sprintf(words, "%s has %zu bytes", names[field], SIZE_MAX);
        REFUSED(SIREN_LIMIT_EXCEEDED, words, open_with(options));
    }

    options = open_options;
    options.model = text_of("/nowhere/to/be/found");
    REFUSED(SIREN_NOT_FOUND, "/nowhere/to/be/found", open_with(options));
    memset(long_name, 'x', sizeof long_name);
    long_name[0] = '/';
    options.model = bytes_of(long_name, sizeof long_name);
    /* A message that does not fit is cut, and says how long it is. */
    REFUSED(SIREN_NOT_FOUND, "/xxx", open_with(options));
    CHECK(open_with(options) == SIREN_NOT_FOUND);
    arm(&place);
    CHECK(open_with(options) == SIREN_NOT_FOUND);
    CHECK(place.message_length > sizeof long_name);
    CHECK(strlen(place.message) == SIREN_ERROR_MESSAGE_SIZE - 1);

    options = open_options;
    options.model = text_of("owner/name");
    /* A build without the hub cannot serve it at all. */
    error = NULL;
    without_hub = open_with(options) == SIREN_UNSUPPORTED;
    REFUSED(without_hub ? SIREN_UNSUPPORTED : SIREN_OFFLINE, "owner/name", open_with(options));
    options = open_options;
    options.device = text_of("tpu");
    REFUSED(SIREN_INVALID_ARGUMENT, "the device is \"tpu\"", open_with(options));
    options.device = text_of("cuda:99");
    REFUSED(SIREN_UNSUPPORTED, "CUDA device 99", open_with(options));
    options = open_options;
    options.dtype = text_of("f64");
    REFUSED(SIREN_INVALID_ARGUMENT, "dtype is \"f64\"", open_with(options));
    options = open_options;
    options.offline = 2;
    REFUSED(SIREN_INVALID_ARGUMENT, "offline is 2", open_with(options));
    options = open_options;
    options.read_weights = UINT32_MAX;
    REFUSED(SIREN_INVALID_ARGUMENT, "read_weights is 4294967295", open_with(options));
    options = open_options;
    options.no_prefix_cache = 2;
    REFUSED(SIREN_INVALID_ARGUMENT, "no_prefix_cache is 2", open_with(options));
    options.no_prefix_cache = 1;
    options.prefix_cache_bytes = 9;
    REFUSED(SIREN_INVALID_ARGUMENT, "prefix_cache_bytes is 9", open_with(options));
    options = open_options;
    options.read_weights = 1;
    options.packed_cache = text_of("auto");
    REFUSED(SIREN_INVALID_ARGUMENT, "a packed cache is mapped", open_with(options));
    options = open_options;
    options.reserved = 1;
    REFUSED(SIREN_INVALID_ARGUMENT, "siren_open_options.reserved", open_with(options));
    options = open_options;
    options.threads = UINT32_MAX;
    REFUSED(SIREN_INVALID_ARGUMENT, "threads is 4294967295", open_with(options));

    /* Model and device written out, weights read: the same guard. */
    options = open_options;
    options.model = text_of(model);
    options.device = text_of("cpu");
    options.dtype = text_of("f32");
    options.threads = 1;
    options.read_weights = 1;
    options.max_streams = 3;
    options.kv_bytes = 1 << 20;
    options.no_prefix_cache = 1;
    {
        siren_guard *opened = NULL;
        ACCEPTED(siren_open(&options, &opened, error));
        CHECK(score_of(opened, TEXT) == expected.score);
        CHECK(siren_free(opened) == SIREN_OK);
    }

    /* Other dtypes are told, and near. */
    for (size_t i = 0; i < 2; i++) {
        static const char *const dtypes[] = {"bf16", "int8"};
        siren_guard *opened = NULL;
        siren_guard_info info;
        options.dtype = text_of(dtypes[i]);
        ACCEPTED(siren_open(&options, &opened, error));
        CHECK(siren_info_init(&info, sizeof info) == SIREN_OK);
        ACCEPTED(siren_info(opened, &info, error));
        CHECK(strcmp(info.dtype, dtypes[i]) == 0);
        CHECK(fabs(score_of(opened, TEXT) - expected.score) <= 0.02);
        CHECK(siren_free(opened) == SIREN_OK);
    }
}

/* The limits that options set. */
static void sweep_limits(void)
{
    siren_open_options options = open_options;
    siren_guard *ordinary = guard, *limited = NULL;
    siren_input inputs[4], input = SIREN_INPUT_INIT;
    siren_guard_info info;
    size_t i;
    options.max_text_bytes = 8;
    options.max_batch = 3;
    options.max_queue = 2;
    options.max_length = 2;
    ACCEPTED(siren_open(&options, &limited, error));
    guard = limited;
    CHECK(siren_info_init(&info, sizeof info) == SIREN_OK);
    ACCEPTED(siren_info(guard, &info, error));
    CHECK(info.max_text_bytes == 8 && info.max_batch == 3 && info.max_length == 2);
    CHECK(info.threads == 2);

    ACCEPTED(score(input_of("a b c d ")));
    CHECK(out.result.truncated == 1 && out.result.tokens == 2);
    ACCEPTED(score(input_of("a")));
    CHECK(out.result.truncated == 0);
    REFUSED(SIREN_LIMIT_EXCEEDED, "text has 9 bytes, more than the limit of 8",
            score(input_of("a b c d e")));
    input.prompt = text_of("12345678");
    input.response = text_of("1");
    REFUSED(SIREN_LIMIT_EXCEEDED, "more than the limit of 8", score(input));
    for (i = 0; i < 4; i++) {
        inputs[i] = input_of("a");
    }
    REFUSED(SIREN_LIMIT_EXCEEDED, "the batch has 4 inputs, more than the limit of 3",
            siren_score_batch(guard, inputs, 4, NULL, out.results, out.errors, error));
    REFUSED(SIREN_BUSY, "limit of 2",
            siren_score_batch(guard, inputs, 3, NULL, out.results, out.errors, error));
    ACCEPTED(siren_score_batch(guard, inputs, 2, NULL, out.results, out.errors, error));
    guard = ordinary;
    CHECK(siren_free(limited) == SIREN_OK);
}

/* ---- the rest ---- */

static int32_t info_json(char *buffer, size_t capacity, size_t *length)
{
    return siren_info_json(guard, buffer, capacity, length, error);
}

static void sweep_info(void)
{
    siren_guard_info info;
    CHECK(siren_info_init(&info, sizeof info) == SIREN_OK);
    ACCEPTED(siren_info(guard, &info, error));
    CHECK(strcmp(info.device, "cpu") == 0 && strcmp(info.dtype, "f32") == 0);
    CHECK(info.threads == 2 && info.max_length >= 1 && info.default_threshold == 0.5);
    CHECK(info.layers_run >= 1 && info.layers_run <= info.layers);
    CHECK(info.hidden_size > 0 && info.neurons > 0 && info.weight_bytes > 0);
    CHECK(info.max_batch == 16384 && info.max_text_bytes == 4u << 20);

    sweep_buffer(info_json, "\"hidden_size\":");
}

static siren_result audited;

static int32_t audit_json(char *buffer, size_t capacity, size_t *length)
{
    return siren_audit_json(guard, &good, &audited, buffer, capacity, length, error);
}

/* A result that no call wrote is not put on record. */
static void sweep_audit(void)
{
    siren_input input = SIREN_INPUT_INIT;
    char text[2048];
    size_t length;
    audited = expected;
    /* The text's own SHA-256, as sha256sum computes it. */
    sweep_buffer(audit_json,
                 "\"text_sha256\":"
                 "\"2397049cbfd0a465a66f27d3f7d4eea654dc5188bbd1bb03a05a822986fe150f\"");
    ACCEPTED(audit_json(text, sizeof text, &length));
    CHECK(strstr(text, "pipe bomb") == NULL);
    CHECK(strncmp(text, "{\"time\":\"2", 10) == 0);
    input.prompt = text_of(OTHER);
    input.response = text_of("yes");
    ACCEPTED(siren_audit_json(guard, &input, &audited, text, sizeof text, &length, error));
    CHECK(strstr(text, "\"text_bytes\":34}") != NULL);

    good.reserved = 1;
    REFUSED(SIREN_INVALID_ARGUMENT, "reserved", audit_json(NULL, 0, &out.length));
    good.reserved = 0;
    audited.status = SIREN_BUSY;
    REFUSED(SIREN_INVALID_ARGUMENT, "siren_result.status is 13", audit_json(NULL, 0, &out.length));
    audited = expected;
    audited.score = NAN;
    REFUSED(SIREN_INVALID_ARGUMENT, "no call wrote", audit_json(NULL, 0, &out.length));
    audited.score = 1.5;
    REFUSED(SIREN_INVALID_ARGUMENT, "no call wrote", audit_json(NULL, 0, &out.length));
    audited = expected;
    audited.threshold = -1.0;
    REFUSED(SIREN_INVALID_ARGUMENT, "no call wrote", audit_json(NULL, 0, &out.length));
    audited = expected;
    audited.is_harmful = !expected.is_harmful;
    REFUSED(SIREN_INVALID_ARGUMENT, "no call wrote", audit_json(NULL, 0, &out.length));
    audited.is_harmful = 2;
    REFUSED(SIREN_INVALID_ARGUMENT, "is_harmful is 2", audit_json(NULL, 0, &out.length));
    audited = expected;
    audited.truncated = 2;
    REFUSED(SIREN_INVALID_ARGUMENT, "truncated is 2", audit_json(NULL, 0, &out.length));
}

static int32_t prometheus(char *buffer, size_t capacity, size_t *length)
{
    return siren_stats_prometheus(guard, buffer, capacity, length, error);
}

static void sweep_prometheus(void)
{
    REFUSED(SIREN_INVALID_ARGUMENT, "length is NULL", prometheus(out.json, 1, NULL));
    REFUSED(SIREN_INVALID_ARGUMENT, "buffer is NULL with a capacity of 9",
            prometheus(NULL, 9, &out.length));
    ACCEPTED(prometheus(NULL, 0, &out.length));
}

static void sweep_names(const char *version)
{
    int32_t status;
    CHECK(siren_abi_version() == ((uint32_t)SIREN_ABI_MAJOR << 16 | SIREN_ABI_MINOR));
    CHECK(strcmp(siren_version(), version) == 0);
    CHECK(strcmp(siren_status_name(SIREN_OK), "ok") == 0);
    CHECK(strcmp(siren_status_name(SIREN_INVALID_ARGUMENT), "invalid_argument") == 0);
    CHECK(strcmp(siren_status_name(SIREN_INTERNAL), "internal") == 0);
    CHECK(strcmp(siren_status_name(SIREN_IN_USE), "in_use") == 0);
    for (status = SIREN_OK; status <= SIREN_IN_USE; status++) {
        CHECK(strcmp(siren_status_name(status), "unknown") != 0);
    }
    CHECK(strcmp(siren_status_name(SIREN_IN_USE + 1), "unknown") == 0);
    CHECK(strcmp(siren_status_name(-1), "unknown") == 0);
    CHECK(strcmp(siren_status_name(INT32_MIN), "unknown") == 0);
    CHECK(strcmp(siren_status_name(INT32_MAX), "unknown") == 0);
}

static void sweep_log(void)
{
    const int32_t bad[] = {-1, 6, INT32_MIN, INT32_MAX};
    int32_t level;
    size_t i;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        REFUSED(SIREN_INVALID_ARGUMENT, "level is ", siren_log_set(nothing, NULL, bad[i], error));
        REFUSED(SIREN_INVALID_ARGUMENT, "level is ", siren_log_set(NULL, NULL, bad[i], error));
    }
    for (level = 0; level <= 5; level++) {
        ACCEPTED(siren_log_set(nothing, &level, level, error));
        ACCEPTED(siren_log_set(NULL, NULL, level, error));
    }
}

int main(int argc, char **argv)
{
    siren_error failure = SIREN_ERROR_INIT;
    size_t i;
    REQUIRE(argc == 3);
    guard = open_model(argv[1]);
    CHECK(siren_open_options_init(&open_options, sizeof open_options) == SIREN_OK);
    open_options.model = text_of(argv[1]);
    open_options.threads = 2;
    open_options.offline = 1;
    good = input_of(TEXT);
    expected.struct_size = sizeof expected;
    REQUIRE(siren_score(guard, &good, NULL, &expected, &failure) == SIREN_OK);

    REQUIRE(siren_stream_new(guard, NULL, &stream, &failure) == SIREN_OK);
    REQUIRE(siren_cancel_token_new(&token, &failure) == SIREN_OK);

    sweep_names(argv[2]);
    sweep_init();
    for (i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        sweep_refused_structs(&kinds[i]);
        sweep_accepted_structs(&kinds[i]);
    }
    for (i = 0; i < sizeof stream_kinds / sizeof *stream_kinds; i++) {
        sweep_refused_structs(&stream_kinds[i]);
    }
    sweep_error_struct();
    sweep_inputs();
    sweep_good_inputs();
    sweep_thresholds();
    sweep_call_options();
    sweep_handles();
    sweep_many_handles();
    sweep_streams();
    sweep_callbacks();
    sweep_batches();
    sweep_larger_elements();
    sweep_open(argv[1]);
    sweep_limits();
    sweep_info();
    sweep_audit();
    sweep_prometheus();
    sweep_log();
    /* After all of this the guard is as it was. */
    CHECK(score_of(guard, TEXT) == expected.score);
    CHECK(siren_free(guard) == SIREN_OK);
    CHECK(siren_stream_free(stream) == SIREN_OK);
    CHECK(siren_cancel_token_free(token) == SIREN_OK);
    CHECK(taken.started == taken.called);
    return check_summary();
}
