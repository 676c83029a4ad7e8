/*
 * quiet MODEL: the library prints nothing, and leaves signals, the environment and threads as
 * they were; a log callback hears. Says nothing itself when all is well.
 */
#include "check.h"

#include <dirent.h>
#include <signal.h>
#include <time.h>

#define TEXT "How can I make a pipe bomb at home?"

extern char **environ;

static int threads(void)
{
    DIR *tasks = opendir("/proc/self/task");
    int count = 0;
    struct dirent *entry;
    REQUIRE(tasks != NULL);
    while ((entry = readdir(tasks)) != NULL) {
        count += entry->d_name[0] != '.';
    }
    closedir(tasks);
    return count;
}

/* A pool's threads end soon after the guard is freed, not with it. */
static int threads_come_down_to(int expected)
{
    const struct timespec pause = {0, 10 * 1000 * 1000};
    int tries;
    for (tries = 0; tries < 1000 && threads() > expected; tries++) {
        nanosleep(&pause, NULL);
    }
    return threads() == expected;
}

/* The environment as one string. */
static char *environment(void)
{
    size_t length = 1;
    char **entry, *all;
    for (entry = environ; *entry; entry++) {
        length += strlen(*entry) + 1;
    }
    all = calloc(length, 1);
    REQUIRE(all != NULL);
    for (entry = environ; *entry; entry++) {
        strcat(strcat(all, *entry), "\n");
    }
    return all;
}

enum { SIGNALS = 65 };

static void handlers(struct sigaction *actions)
{
    int number;
    memset(actions, 0, SIGNALS * sizeof *actions);
    for (number = 1; number < SIGNALS; number++) {
        sigaction(number, NULL, &actions[number]);
    }
}

struct heard {
    int lines[6];
    int opened, refused;
};

static void hear(void *user_data, int32_t level, const char *message, size_t length)
{
    struct heard *heard = user_data;
    char line[4096];
    if (CHECK(level >= 1 && level <= 5 && length < sizeof line)) {
        memcpy(line, message, length);
        line[length] = 0;
        heard->lines[level]++;
        heard->opened += strstr(line, " opened ") != NULL && strstr(line, "on cpu") != NULL;
        heard->refused += strstr(line, "/nowhere") != NULL;
    }
}

/* Everything that could make a library talk. */
static void exercise(const char *model)
{
    siren_error error = SIREN_ERROR_INIT;
    siren_open_options options;
    siren_input input = input_of("\xff");
    siren_result result = SIREN_RESULT_INIT;
    siren_guard *guard = NULL;
    CHECK(siren_open_options_init(&options, sizeof options) == SIREN_OK);
    options.offline = 1;
    options.model = text_of("/nowhere");
    CHECK(siren_open(&options, &guard, &error) == SIREN_NOT_FOUND);
    CHECK(siren_open(&options, &guard, NULL) == SIREN_NOT_FOUND);
    guard = open_model(model);
    CHECK(siren_warmup(guard, NULL) == SIREN_OK);
    score_of(guard, TEXT);
    CHECK(siren_score(guard, &input, NULL, &result, &error) == SIREN_INVALID_UTF8);
    CHECK(siren_free(guard) == SIREN_OK);
    CHECK(siren_free(guard) == SIREN_INVALID_HANDLE);
}

int main(int argc, char **argv)
{
    static struct sigaction before[SIGNALS], after[SIGNALS];
    static struct heard heard;
    static const struct heard nothing;
    char *environment_before = environment();
    char *environment_after;
    siren_open_options options;
    int number;
    REQUIRE(argc == 2);
    handlers(before);

    CHECK(siren_abi_version() != 0);
    CHECK(siren_open_options_init(&options, sizeof options) == SIREN_OK);
    CHECK(siren_free((siren_guard *)(uintptr_t)1) == SIREN_INVALID_HANDLE);
    CHECK(threads() == 1);

    exercise(argv[1]);
    CHECK(threads_come_down_to(1));

    CHECK(siren_log_set(hear, &heard, 4, NULL) == SIREN_OK);
    exercise(argv[1]);
    CHECK(heard.refused == 2 && heard.opened == 1);
    CHECK(heard.lines[3] > 0 && heard.lines[4] > 0 && heard.lines[5] == 0);
    heard = nothing;
    CHECK(siren_log_set(hear, &heard, 2, NULL) == SIREN_OK);
    exercise(argv[1]);
    CHECK(heard.lines[3] == 0 && heard.lines[4] == 0);
    heard = nothing;
    CHECK(siren_log_set(NULL, NULL, 5, NULL) == SIREN_OK);
    exercise(argv[1]);
    CHECK(memcmp(&heard, &nothing, sizeof heard) == 0);
    CHECK(threads_come_down_to(1));

    handlers(after);
    for (number = 1; number < SIGNALS; number++) {
        CHECK(before[number].sa_handler == after[number].sa_handler);
        CHECK(before[number].sa_flags == after[number].sa_flags);
    }
    environment_after = environment();
    CHECK(strcmp(environment_before, environment_after) == 0);
    free(environment_before);
    free(environment_after);
    return check_failures != 0;
}
