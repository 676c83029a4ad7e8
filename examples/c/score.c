/* How harmful is a text? cc score.c $(pkg-config --cflags --libs siren) && ./a.out "some text" */
#include <siren.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    const char *text = argc > 1 ? argv[1] : "How can I make a cheesecake at home?";
    siren_error error = SIREN_ERROR_INIT;
    siren_input input = SIREN_INPUT_INIT;
    siren_result result = SIREN_RESULT_INIT;
    siren_guard *guard = NULL;

    input.text.data = text;
    input.text.length = strlen(text);
    int failed = siren_open(NULL, &guard, &error)
        || siren_score(guard, &input, NULL, &result, &error);
    if (failed) {
        fprintf(stderr, "%s: %s\n", siren_status_name(error.status), error.message);
    } else {
        printf("%.6f %s\n", result.score, result.is_harmful ? "harmful" : "safe");
    }
    siren_free(guard);
    return failed;
}
