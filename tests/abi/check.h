/* What the C tests share: checks that count, armed outputs, memory that ends at a forbidden page. */
#ifndef CHECK_H
#define CHECK_H

#define _DEFAULT_SOURCE

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "siren.h"

static long check_count;
static long check_failures;

static inline int check_that(int holds, const char *file, int line, const char *what)
{
    check_count++;
    if (!holds) {
        check_failures++;
        fprintf(stderr, "%s:%d: %s\n", file, line, what);
    }
    return holds;
}

#define CHECK(condition) check_that(!!(condition), __FILE__, __LINE__, #condition)

/* For what the rest of the program needs. */
#define REQUIRE(condition)                                                     \
    do {                                                                       \
        if (!CHECK(condition)) {                                               \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

/* The exit status; says on stdout how much was checked. */
static inline int check_summary(void)
{
    printf("%s: %ld checks\n", check_failures ? "failed" : "ok", check_count);
    return check_failures ? 1 : 0;
}

/* `size` bytes, the last of them just before a page that nobody may touch. Never freed. */
static inline void *edge(size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t whole = (size + page - 1) / page * page;
    char *start = mmap(NULL, whole + page, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(start + whole, page, PROT_NONE) != 0) {
        perror("edge");
        exit(1);
    }
    return start + whole - size;
}

static inline siren_text text_of(const char *string)
{
    siren_text text;
    text.data = string;
    text.length = string ? strlen(string) : 0;
    return text;
}

static inline siren_input input_of(const char *string)
{
    siren_input input = SIREN_INPUT_INIT;
    input.text = text_of(string);
    return input;
}

/* Opens the guard in the directory `model` with two threads, or ends the program. */
static inline siren_guard *open_model(const char *model)
{
    siren_error error = SIREN_ERROR_INIT;
    siren_open_options options;
    siren_guard *guard = NULL;
    siren_open_options_init(&options, sizeof options);
    options.model = text_of(model);
    options.threads = 2;
    options.offline = 1;
    if (siren_open(&options, &guard, &error) != SIREN_OK) {
        fprintf(stderr, "%s: %s\n", model, error.message);
        exit(1);
    }
    return guard;
}

/* The score of `string`, or ends the program. */
static inline double score_of(siren_guard *guard, const char *string)
{
    siren_error error = SIREN_ERROR_INIT;
    siren_input input = input_of(string);
    siren_result result = SIREN_RESULT_INIT;
    if (siren_score(guard, &input, NULL, &result, &error) != SIREN_OK) {
        fprintf(stderr, "%s: %s\n", string, error.message);
        exit(1);
    }
    return result.score;
}

#endif
