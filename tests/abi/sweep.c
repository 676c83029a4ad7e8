/*
 * sweep MODEL VERSION: every entry point with everything that can be wrong with its arguments.
 * Memory that must not be read or written lies on a forbidden page; outputs are filled with 0xA5
 * before every call that must fail, and compared after it.
 */
#include "check.h"

#include <math.h>

#define FILL 0xA5
#define TEXT "How can I make a pipe bomb at home?"
#define OTHER "What is the capital of France?"

static siren_guard *guard;
static siren_input good;
static siren_result expected;

/* ---- calls that must fail, and calls that must not ---- */

static struct {
    siren_guard *handle;
    siren_result result;
    siren_result results[8];
    siren_error errors[8];
    siren_guard_info info;
    size_t length;
    char json[64];
} out, armed;

static siren_error place, armed_place;
/* What a call in REFUSED and ACCEPTED passes as its error: `place` or NULL. */
static siren_error *error;

static void arm(siren_error *chosen)
{
    size_t i;
    memset(&out, FILL, sizeof out);
    out.result.struct_size = sizeof out.result;
    out.info.struct_size = sizeof out.info;
    for (i = 0; i < 8; i++) {
        out.results[i].struct_size = sizeof out.results[i];
        out.errors[i].struct_size = sizeof out.errors[i];
    }
    memcpy(&armed, &out, sizeof out);
    memset(&place, FILL, sizeof place);
    place.struct_size = sizeof place;
    memcpy(&armed_place, &place, sizeof place);
    error = chosen;
}

static void check_refused(int32_t got, int32_t status, const char *words, int line,
                          const char *call)
{
    int holds = got == status && memcmp(&out, &armed, sizeof out) == 0;
    if (holds && error) {
        size_t length = strlen(place.message);
        size_t whole = (size_t)place.message_length;
        holds = place.struct_size == sizeof place && place.status == status
            && (length == whole || (whole > length && length == sizeof place.message - 1))
            && strstr(place.message, words) != NULL;
    }
    if (!check_that(holds, "sweep.c", line, call)) {
        place.message[sizeof place.message - 1] = 0;
        fprintf(stderr, "  expected %s saying \"%s\", got %s%s: %s\n", siren_status_name(status),
                words, siren_status_name(got),
                memcmp(&out, &armed, sizeof out) ? " and touched outputs" : "",
                error ? place.message : "(no error struct)");
    }
}

/* `CALL`, with an error struct and without, fails as said and touches no output. */
#define REFUSED(STATUS, WORDS, CALL)                                           \
    do {                                                                       \
        arm(&place);                                                           \
        check_refused((CALL), STATUS, WORDS, __LINE__, #CALL);                 \
        arm(NULL);                                                             \
        check_refused((CALL), STATUS, WORDS, __LINE__, #CALL);                 \
    } while (0)

/* `CALL` succeeds and touches no error. */
#define ACCEPTED(CALL)                                                         \
    do {                                                                       \
        arm(&place);                                                           \
        if (!CHECK((CALL) == SIREN_OK)) {                                      \
            fprintf(stderr, "  %s\n", place.message);                          \
        }                                                                      \
        CHECK(memcmp(&place, &armed_place, sizeof place) == 0);                \
    } while (0)

static int32_t score(siren_input input)
{
    return siren_score(guard, &input, NULL, &out.result, error);
}

/* ---- struct sizes, NULL and alignment, for every struct of every call ---- */

struct kind {
    const char *name;
    size_t size;
    int is_output;
    int may_be_null;
    void (*fill)(void *bytes);
    int32_t (*call)(void *bytes);
};

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

static const struct kind kinds[] = {
    {"siren_input", sizeof(siren_input), 0, 0, fill_input, input_of_score},
    {"siren_input", sizeof(siren_input), 0, 0, fill_input, input_of_batch},
    {"siren_score_options", sizeof(siren_score_options), 0, 1, fill_score_options,
     options_of_score},
    {"siren_score_options", sizeof(siren_score_options), 0, 1, fill_score_options,
     options_of_batch},
    {"siren_open_options", sizeof(siren_open_options), 0, 1, fill_open_options, options_of_open},
    {"siren_result", sizeof(siren_result), 1, 0, fill_output, result_of_score},
    {"siren_result", sizeof(siren_result), 1, 0, fill_output, result_of_batch},
    {"siren_error", sizeof(siren_error), 1, 1, fill_output, errors_of_batch},
    {"siren_guard_info", sizeof(siren_guard_info), 1, 0, fill_output, info_of_info},
};

static void set_size(void *bytes, uint32_t size) { memcpy(bytes, &size, sizeof size); }

static int all_are(const void *bytes, size_t length, unsigned char value)
{
    const unsigned char *p = bytes;
    while (length > 0 && *p == value) {
        p++;
        length--;
    }
    return length == 0;
}

/* A struct of `size` bytes at `bytes`, its tail 0 for inputs and 0xA5 for outputs, is taken. */
static void check_accepted_struct(const struct kind *kind, unsigned char *bytes, size_t size)
{
    uint32_t kept;
    memset(bytes, kind->is_output ? FILL : 0, size);
    kind->fill(bytes);
    set_size(bytes, (uint32_t)size);
    ACCEPTED(kind->call(bytes));
    memcpy(&kept, bytes, sizeof kept);
    CHECK(kept == size);
    if (kind->is_output) {
        CHECK(!all_are(bytes + 4, kind->size - 4, FILL));
        CHECK(all_are(bytes + kind->size, size - kind->size, FILL));
    }
}

static void sweep_struct(const struct kind *kind)
{
    uint32_t wrong[] = {0, 1, 4, 0, (1u << 16) + 1, 1u << 20, UINT32_MAX};
    size_t longer = kind->size + 8;
    unsigned char *bytes = edge(longer);
    size_t i;

    wrong[3] = (uint32_t)kind->size - 1;
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        /* A refused size is all that is read. */
        unsigned char *only_size = edge(4);
        set_size(only_size, wrong[i]);
        REFUSED(SIREN_INVALID_ARGUMENT, kind->name, kind->call(only_size));
        REFUSED(SIREN_INVALID_ARGUMENT, "struct_size is ", kind->call(only_size));
        CHECK(memcmp(only_size, &wrong[i], 4) == 0);
    }
    if (!kind->may_be_null) {
        REFUSED(SIREN_INVALID_ARGUMENT, kind->name, kind->call(NULL));
    } else if (kind->call != options_of_open) {
        ACCEPTED(kind->call(NULL));
    }

    check_accepted_struct(kind, edge(kind->size), kind->size);
    check_accepted_struct(kind, bytes, longer);
    check_accepted_struct(kind, edge(1u << 16), 1u << 16);
    if (!kind->is_output) {
        for (i = kind->size; i < longer; i++) {
            memset(bytes, 0, longer);
            kind->fill(bytes);
            set_size(bytes, (uint32_t)longer);
            bytes[i] = 1;
            REFUSED(SIREN_INVALID_ARGUMENT, "this version of the library", kind->call(bytes));
        }
    }
    for (i = 1; i < 8; i++) {
        check_accepted_struct(kind, (unsigned char *)edge(kind->size + 8) + i, kind->size);
    }
}

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
    default:
        return siren_score_batch(g, &good, 1, NULL, out.results, out.errors, e);
    }
}

static void sweep_error_struct(void)
{
    const uint32_t wrong[] = {0, 4, sizeof(siren_error) - 1, 1u << 20, UINT32_MAX};
    const size_t sizes[] = {sizeof(siren_error), sizeof(siren_error) + 8};
    int call;
    size_t i;
    for (call = 0; call <= 6; call++) {
        for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
            void *only_size = edge(4);
            set_size(only_size, wrong[i]);
            arm(NULL);
            check_refused(with_error(call, 0, only_size), SIREN_INVALID_ARGUMENT, "", __LINE__,
                          "an error struct of a wrong size");
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
    default:
        return siren_result_init(bytes, size);
    }
}

static void sweep_init(void)
{
    const size_t firsts[] = {sizeof(siren_error), sizeof(siren_guard_info),
                             sizeof(siren_open_options), sizeof(siren_input),
                             sizeof(siren_score_options), sizeof(siren_result)};
    int call;
    size_t i;
    for (call = 0; call < 6; call++) {
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
    check_refused(score(input), status, words, line, "a bad input");
    arm(NULL);
    check_refused(score(input), status, words, line, "a bad input, no error struct");

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
    static const size_t huge[] = {SIZE_MAX, SIZE_MAX - 7, (size_t)1 << 40, (16u << 20) + 1};
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

/* ---- handles ---- */

static void bad_handle(siren_guard *handle, int32_t status, const char *words)
{
    REFUSED(status, words, siren_score(handle, &good, NULL, &out.result, error));
    REFUSED(status, words,
            siren_score_batch(handle, &good, 1, NULL, out.results, out.errors, error));
    REFUSED(status, words, siren_score_batch(handle, NULL, 0, NULL, NULL, NULL, error));
    REFUSED(status, words, siren_warmup(handle, error));
    REFUSED(status, words, siren_info(handle, &out.info, error));
    REFUSED(status, words,
            siren_info_json(handle, out.json, sizeof out.json, &out.length, error));
    if (handle) {
        CHECK(siren_free(handle) == status);
    } else {
        CHECK(siren_free(handle) == SIREN_OK);
    }
}

static void sweep_handles(void)
{
    const char *not_a_handle = "not a guard's handle";
    const char *freed = "was freed, or never opened";
    siren_guard *first = NULL, *second = NULL;
    uintptr_t bits = (uintptr_t)guard;
    int bit;

    bad_handle(NULL, SIREN_INVALID_ARGUMENT, "guard is NULL");
    bad_handle((siren_guard *)(uintptr_t)1, SIREN_INVALID_HANDLE, not_a_handle);
    bad_handle((siren_guard *)(void *)&first, SIREN_INVALID_HANDLE, not_a_handle);
    bad_handle((siren_guard *)(void *)&good, SIREN_INVALID_HANDLE, not_a_handle);
    bad_handle((siren_guard *)edge(1), SIREN_INVALID_HANDLE, not_a_handle);
    bad_handle((siren_guard *)UINTPTR_MAX, SIREN_INVALID_HANDLE, not_a_handle);
    for (bit = 0; bit < 64; bit++) {
        /* One wrong bit: another slot, generation, process or kind. */
        siren_guard *wrong = (siren_guard *)(bits ^ (uintptr_t)1 << bit);
        arm(&place);
        check_refused(siren_score(wrong, &good, NULL, &out.result, error),
                      bit >= 48 && bit < 56 ? SIREN_FORKED : SIREN_INVALID_HANDLE, "guard",
                      __LINE__, "a handle with one wrong bit");
        CHECK(siren_free(wrong) != SIREN_OK);
    }

    ACCEPTED(siren_open(&open_options, &first, error));
    CHECK(score_of(first, TEXT) == expected.score);
    CHECK(first != guard);
    CHECK(siren_free(first) == SIREN_OK);
    bad_handle(first, SIREN_INVALID_HANDLE, freed);
    /* The slot is used again, the handle is not. */
    ACCEPTED(siren_open(&open_options, &second, error));
    CHECK(second != first);
    bad_handle(first, SIREN_INVALID_HANDLE, freed);
    CHECK(score_of(second, TEXT) == expected.score);
    CHECK(siren_free(second) == SIREN_OK);
    CHECK(siren_free(second) == SIREN_INVALID_HANDLE);
    CHECK(siren_free(NULL) == SIREN_OK);
    ACCEPTED(siren_warmup(guard, error));
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
                      SIREN_INVALID_ARGUMENT, "siren_result[", __LINE__, "a result of size 0");
        arm(&place);
        armed.errors[i].struct_size = out.errors[i].struct_size = 0;
        check_refused(siren_score_batch(guard, inputs, 8, NULL, out.results, out.errors, error),
                      SIREN_INVALID_ARGUMENT, "siren_error[", __LINE__, "an error of size 0");
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
                           &options->hub_token,    &options->data_dir};
    return texts[field];
}

static int32_t open_with(siren_open_options options)
{
    return siren_open(&options, &out.handle, error);
}

static void sweep_open(const char *model)
{
    static const char *const names[] = {"model",     "backbone",     "device",    "dtype",
                                        "cache_dir", "hub_endpoint", "hub_token", "data_dir"};
    siren_open_options options;
    char words[80], long_name[1 << 16];
    int field, without_hub;

    REFUSED(SIREN_INVALID_ARGUMENT, "guard is NULL", siren_open(&open_options, NULL, error));
    REFUSED(SIREN_INVALID_ARGUMENT, "guard is NULL", siren_open(NULL, NULL, error));
    for (field = 0; field < 8; field++) {
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
    options.threads = UINT32_MAX;
    REFUSED(SIREN_INVALID_ARGUMENT, "threads is 4294967295", open_with(options));

    /* Model and device written out, weights read: the same guard. */
    options = open_options;
    options.model = text_of(model);
    options.device = text_of("cpu");
    options.dtype = text_of("f32");
    options.threads = 1;
    options.read_weights = 1;
    {
        siren_guard *opened = NULL;
        ACCEPTED(siren_open(&options, &opened, error));
        CHECK(score_of(opened, TEXT) == expected.score);
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

static void sweep_info(void)
{
    siren_guard_info info;
    size_t length = 0;
    char *json;
    CHECK(siren_info_init(&info, sizeof info) == SIREN_OK);
    ACCEPTED(siren_info(guard, &info, error));
    CHECK(strcmp(info.device, "cpu") == 0 && strcmp(info.dtype, "f32") == 0);
    CHECK(info.threads == 2 && info.max_length >= 1 && info.default_threshold == 0.5);
    CHECK(info.layers_run >= 1 && info.layers_run <= info.layers);
    CHECK(info.hidden_size > 0 && info.neurons > 0 && info.weight_bytes > 0);
    CHECK(info.max_batch == 16384 && info.max_text_bytes == 16u << 20);

    REFUSED(SIREN_INVALID_ARGUMENT, "length is NULL",
            siren_info_json(guard, out.json, sizeof out.json, NULL, error));
    REFUSED(SIREN_INVALID_ARGUMENT, "length is NULL", siren_info_json(guard, NULL, 0, NULL, error));
    REFUSED(SIREN_INVALID_ARGUMENT, "buffer is NULL with a capacity of 9",
            siren_info_json(guard, NULL, 9, &out.length, error));
    ACCEPTED(siren_info_json(guard, NULL, 0, &length, error));
    REQUIRE(length > sizeof out.json);
    /* Too small, by much and by the NUL: only the length is told. */
    arm(&place);
    CHECK(siren_info_json(guard, out.json, sizeof out.json, &out.length, error)
          == SIREN_INVALID_ARGUMENT);
    CHECK(out.length == length);
    CHECK(all_are(out.json, sizeof out.json, FILL));
    json = edge(length);
    memset(json, FILL, length);
    arm(&place);
    CHECK(siren_info_json(guard, json, length, &out.length, error) == SIREN_INVALID_ARGUMENT);
    CHECK(strstr(place.message, "the buffer has ") != NULL);
    CHECK(all_are(json, length, FILL));
    CHECK(siren_info_json(guard, json, 0, &out.length, error) == SIREN_INVALID_ARGUMENT);
    json = edge(length + 1);
    ACCEPTED(siren_info_json(guard, json, length + 1, &out.length, error));
    CHECK(out.length == length && strlen(json) == length);
    CHECK(json[0] == '{' && json[length - 1] == '}' && strstr(json, "\"hidden_size\":") != NULL);
    json = edge(length + 9);
    memset(json, FILL, length + 9);
    ACCEPTED(siren_info_json(guard, json, length + 9, &out.length, error));
    CHECK(all_are(json + length + 1, 8, FILL));
}

static void sweep_names(const char *version)
{
    int32_t status;
    CHECK(siren_abi_version() == ((uint32_t)SIREN_ABI_MAJOR << 16 | SIREN_ABI_MINOR));
    CHECK(strcmp(siren_version(), version) == 0);
    CHECK(strcmp(siren_status_name(SIREN_OK), "ok") == 0);
    CHECK(strcmp(siren_status_name(SIREN_INVALID_ARGUMENT), "invalid_argument") == 0);
    CHECK(strcmp(siren_status_name(SIREN_INTERNAL), "internal") == 0);
    for (status = SIREN_OK; status <= SIREN_INTERNAL; status++) {
        CHECK(strcmp(siren_status_name(status), "unknown") != 0);
    }
    CHECK(strcmp(siren_status_name(SIREN_INTERNAL + 1), "unknown") == 0);
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

    sweep_names(argv[2]);
    sweep_init();
    for (i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        sweep_struct(&kinds[i]);
    }
    sweep_error_struct();
    sweep_inputs();
    sweep_good_inputs();
    sweep_thresholds();
    sweep_handles();
    sweep_batches();
    sweep_larger_elements();
    sweep_open(argv[1]);
    sweep_limits();
    sweep_info();
    sweep_log();
    /* After all of this the guard is as it was. */
    CHECK(score_of(guard, TEXT) == expected.score);
    CHECK(siren_free(guard) == SIREN_OK);
    return check_summary();
}
