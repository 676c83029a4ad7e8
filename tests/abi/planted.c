/*
 * planted MODEL: what a panic does to the text, the guard, and other guards. Needs a library with
 * the feature planted-panics. Says nothing when all is well: a caught panic prints nothing.
 */
#include "check.h"

#define PREPARING "siren: planted panic while preparing"
#define WORKER "siren: planted panic in the worker"
#define TEXT "How can I make a pipe bomb at home?"

static int32_t score(siren_guard *guard, const char *string, siren_error *error)
{
    siren_input input = input_of(string);
    siren_result result, untouched;
    int32_t status;
    memset(&result, 0xA5, sizeof result);
    result.struct_size = sizeof result;
    untouched = result;
    siren_error_init(error, sizeof *error);
    status = siren_score(guard, &input, NULL, &result, error);
    CHECK(status == SIREN_OK || memcmp(&result, &untouched, sizeof result) == 0);
    return status;
}

/* The status of a push; on failure the result is untouched. */
static int32_t push(siren_stream *stream, const char *string, siren_error *error)
{
    siren_push_result result, untouched;
    int32_t status;
    memset(&result, 0xA5, sizeof result);
    result.struct_size = sizeof result;
    untouched = result;
    siren_error_init(error, sizeof *error);
    status = siren_stream_push(stream, string, strlen(string), NULL, &result, error);
    CHECK(status == SIREN_OK || memcmp(&result, &untouched, sizeof result) == 0);
    return status;
}

int main(int argc, char **argv)
{
    siren_guard *guard, *other;
    siren_stream *stream, *fork = NULL;
    siren_error error = SIREN_ERROR_INIT, errors[3] = {SIREN_ERROR_INIT};
    siren_input inputs[3];
    siren_result results[3] = {SIREN_RESULT_INIT, SIREN_RESULT_INIT, SIREN_RESULT_INIT};
    siren_guard_info info;
    double expected;
    int i;
    REQUIRE(argc == 2);
    guard = open_model(argv[1]);
    other = open_model(argv[1]);
    expected = score_of(guard, TEXT);
    siren_error_init(&errors[1], sizeof errors[1]);
    siren_error_init(&errors[2], sizeof errors[2]);

    /* While a text is prepared: that text's error, alone and in a batch. */
    CHECK(score(guard, PREPARING, &error) == SIREN_INTERNAL);
    CHECK(strstr(error.message, PREPARING) != NULL);
    CHECK(score_of(guard, TEXT) == expected);
    inputs[0] = inputs[2] = input_of(TEXT);
    inputs[1] = input_of(PREPARING);
    CHECK(siren_score_batch(guard, inputs, 3, NULL, results, errors, &error) == SIREN_OK);
    CHECK(results[0].status == SIREN_OK && results[0].score == expected);
    CHECK(results[1].status == SIREN_INTERNAL && results[1].is_harmful == 1);
    CHECK(strstr(errors[1].message, PREPARING) != NULL);
    CHECK(results[2].status == SIREN_OK && results[2].score == expected);

    stream = NULL;
    CHECK(siren_stream_new(guard, NULL, &stream, &error) == SIREN_OK);
    CHECK(push(stream, PREPARING, &error) == SIREN_INTERNAL);
    CHECK(strstr(error.message, PREPARING) != NULL);

    /* In the worker, from a stream: the stream is free again, and its guard is broken. */
    CHECK(push(stream, WORKER, &error) == SIREN_POISONED);
    CHECK(strstr(error.message, WORKER) != NULL);
    CHECK(push(stream, TEXT, &error) == SIREN_POISONED);
    CHECK(siren_stream_fork(stream, &fork, &error) == SIREN_POISONED && fork == NULL);
    CHECK(siren_stream_free(stream) == SIREN_OK);
    CHECK(siren_stream_new(guard, NULL, &stream, &error) == SIREN_POISONED);
    CHECK(siren_free(guard) == SIREN_OK);
    guard = open_model(argv[1]);

    /* In the worker: this guard is broken for good, and says so. */
    CHECK(score(guard, WORKER, &error) == SIREN_POISONED);
    CHECK(strstr(error.message, WORKER) != NULL);
    for (i = 0; i < 3; i++) {
        CHECK(score(guard, TEXT, &error) == SIREN_POISONED);
        CHECK(strstr(error.message, "open a new one") != NULL);
        memset(results, 0xA5, sizeof results);
        results[0].struct_size = results[1].struct_size = results[2].struct_size =
            sizeof results[0];
        CHECK(siren_score_batch(guard, inputs, 3, NULL, results, NULL, &error)
              == SIREN_POISONED);
        CHECK(results[0].status != SIREN_OK && results[2].is_harmful != 0);
        CHECK(siren_warmup(guard, &error) == SIREN_POISONED);
    }
    siren_info_init(&info, sizeof info);
    CHECK(siren_info(guard, &info, &error) == SIREN_OK);

    /* No other guard is touched, and opening again is the way back. */
    CHECK(score_of(other, TEXT) == expected);
    CHECK(siren_free(guard) == SIREN_OK);
    guard = open_model(argv[1]);
    CHECK(score_of(guard, TEXT) == expected);

    /* Within a batch the panic is the error of every text of its pass. */
    inputs[1] = input_of(WORKER);
    siren_result_init(&results[0], sizeof results[0]);
    siren_result_init(&results[1], sizeof results[1]);
    siren_result_init(&results[2], sizeof results[2]);
    CHECK(siren_score_batch(guard, inputs, 3, NULL, results, errors, &error) == SIREN_OK);
    for (i = 0; i < 3; i++) {
        CHECK(results[i].status == SIREN_POISONED && results[i].is_harmful == 1);
        CHECK(errors[i].status == SIREN_POISONED);
    }
    CHECK(score_of(other, TEXT) == expected);
    CHECK(siren_free(guard) == SIREN_OK);
    CHECK(siren_free(other) == SIREN_OK);
    return check_failures != 0;
}
