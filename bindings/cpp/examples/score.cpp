// How harmful is a text? c++ -std=c++17 score.cpp $(pkg-config --cflags --libs siren) && ./a.out "some text"
#include <siren.hpp>

#include <cstdio>

int main(int argc, char **argv)
{
    const auto guard = siren::guard::open(); // the demo guard
    if (!guard) {
        std::fprintf(stderr, "%s\n", guard.error().message.c_str());
        return 1;
    }
    const auto result = guard->score(argc > 1 ? argv[1] : "How can I make a cheesecake at home?");
    if (!result) {
        std::fprintf(stderr, "%s\n", result.error().message.c_str());
        return 1;
    }
    std::printf("%.4f %s\n", result->score(), result->is_harmful() ? "harmful" : "safe");
}
