/* The calls of Bench.cs without a binding: microseconds a call, the median of 9 rounds. */
#include <siren.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static siren_guard *guard;
static siren_input many[1000];
static siren_result results[1000];
static siren_error errors[1000];
static char refused[65];

static void info(void)
{
    siren_guard_info i;
    siren_info_init(&i, sizeof i);
    siren_info(guard, &i, NULL);
}

static void stream(void)
{
    siren_stream *s;
    siren_stream_new(guard, NULL, &s, NULL);
    siren_stream_free(s);
}

static void score(const char *text, size_t length)
{
    siren_input input = SIREN_INPUT_INIT;
    siren_result result = SIREN_RESULT_INIT;
    siren_error error;
    siren_error_init(&error, sizeof error);
    input.text.data = text;
    input.text.length = length;
    siren_score(guard, &input, NULL, &result, &error);
}

static void refuse(void) { score(refused, sizeof refused); }
static void one(void) { score("one two three", 13); }

static void batch(void)
{
    for (int i = 0; i < 1000; i++) {
        siren_error_init(&errors[i], sizeof errors[i]);
        siren_input_init(&many[i], sizeof many[i]);
        siren_result_init(&results[i], sizeof results[i]);
        many[i].text.data = "one two three";
        many[i].text.length = 13;
    }
    siren_score_batch(guard, many, 1000, NULL, results, errors, NULL);
}

static int by_size(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

static void run(const char *name, int calls, void (*call)(void))
{
    double rounds[9];
    call();
    for (int r = 0; r < 9; r++) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        for (int i = 0; i < calls; i++) {
            call();
        }
        clock_gettime(CLOCK_MONOTONIC, &to);
        rounds[r] = ((double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec)) / 1e3 / calls;
    }
    qsort(rounds, 9, sizeof *rounds, by_size);
    printf("%-32s %10.2f us\n", name, rounds[4]);
}

int main(void)
{
    siren_open_options options;
    siren_open_options_init(&options, sizeof options);
    options.threads = 1;
    options.max_text_bytes = 64;
    memset(refused, 'a', sizeof refused);
    siren_error error = SIREN_ERROR_INIT;
    if (siren_open(&options, &guard, &error)) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    run("information", 20000, info);
    run("stream, opened and freed", 20000, stream);
    run("refused", 5000, refuse);
    run("1 text", 500, one);
    run("1,000 texts", 3, batch);
    return 0;
}
