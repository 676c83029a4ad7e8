// How harmful is a text? c++ score.cpp $(pkg-config --cflags --libs siren) && ./a.out "some text"
#include <siren.h>

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>

namespace {

struct Free {
    void operator()(siren_guard *guard) const { siren_free(guard); }
};
using Guard = std::unique_ptr<siren_guard, Free>;

// Throws what a failed call left in its error struct.
void check(int32_t status, const siren_error &error)
{
    if (status != SIREN_OK) {
        throw std::runtime_error(std::string(siren_status_name(status)) + ": " + error.message);
    }
}

Guard open_demo()
{
    siren_error error = SIREN_ERROR_INIT;
    siren_guard *guard = nullptr;
    check(siren_open(nullptr, &guard, &error), error);
    return Guard(guard);
}

siren_result score(const Guard &guard, const std::string &text)
{
    siren_error error = SIREN_ERROR_INIT;
    siren_input input = SIREN_INPUT_INIT;
    siren_result result = SIREN_RESULT_INIT;
    input.text = {text.data(), text.size()};
    check(siren_score(guard.get(), &input, nullptr, &result, &error), error);
    return result;
}

} // namespace

int main(int argc, char **argv)
{
    try {
        const Guard guard = open_demo();
        const siren_result result =
            score(guard, argc > 1 ? argv[1] : "How can I make a cheesecake at home?");
        std::printf("%.6f %s\n", result.score, result.is_harmful ? "harmful" : "safe");
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
