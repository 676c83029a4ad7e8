/* Guards an answer while it grows: reads it on stdin, prints what is cleared, stops at the first
 * crossing. cc stream.c $(pkg-config --cflags --libs siren) && ./a.out "the prompt" < answer */
#include <siren.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    static char answer[1 << 20];
    size_t length = 0, shown = 0, chunk = 1;
    siren_error error = SIREN_ERROR_INIT;
    siren_stream_options options = SIREN_STREAM_OPTIONS_INIT;
    siren_push_result result = SIREN_PUSH_RESULT_INIT;
    siren_guard *guard = NULL;
    siren_stream *stream = NULL;

    options.prompt.data = argc > 1 ? argv[1] : NULL;
    options.prompt.length = argc > 1 ? strlen(argv[1]) : 0;
    int failed = siren_open(NULL, &guard, &error)
        || siren_stream_new(guard, &options, &stream, &error);
    while (!failed && !result.crossed && chunk > 0 && length + 16 <= sizeof answer) {
        chunk = fread(answer + length, 1, 16, stdin);
        failed = SIREN_OK != (chunk > 0
            ? siren_stream_push(stream, answer + length, chunk, NULL, &result, &error)
            : siren_stream_finish(stream, NULL, &result, &error));
        if (!failed) {
            length += chunk;
            fwrite(answer + shown, 1, result.cleared_bytes - shown, stdout);
            shown = result.cleared_bytes;
        }
    }
    if (failed) {
        fprintf(stderr, "%s: %s\n", siren_status_name(error.status), error.message);
    } else {
        printf("\n%s\n", result.crossed ? "stopped: harmful" : chunk ? "stopped: long" : "all of it");
    }
    siren_stream_free(stream);
    siren_free(guard);
    return failed;
}
