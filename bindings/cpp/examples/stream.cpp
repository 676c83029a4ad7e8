// Guards an answer while it grows: reads it on stdin, prints what is cleared, stops at the crossing.
// c++ -std=c++17 stream.cpp $(pkg-config --cflags --libs siren) && ./a.out "the prompt" < answer
#include <siren.hpp>

#include <iostream>
#include <string>

int main(int argc, char **argv)
try {
    siren::stream_options options;
    if (argc > 1) {
        options.prompt = argv[1];
    }
    options.windows = siren::windows{}; // past the guard's max_length too
    const siren::guard guard = siren::guard::open().value();
    siren::stream stream = guard.new_stream(options).value();
    std::string answer;
    std::size_t shown = 0;
    char chunk[16];
    for (bool more = true; more;) {
        std::cin.read(chunk, sizeof chunk);
        const auto length = static_cast<std::size_t>(std::cin.gcount());
        more = length > 0;
        answer.append(chunk, length);
        const siren::push_result result = (more ? stream.push({chunk, length}) : stream.finish()).value();
        std::cout << answer.substr(shown, result.cleared_bytes() - shown) << std::flush;
        shown = result.cleared_bytes();
        if (result.crossing()) {
            std::cout << "\nstopped: harmful\n";
            return 0;
        }
    }
    std::cout << "\nall of it\n";
} catch (const siren::failure &e) {
    std::cerr << e.what() << '\n';
    return 1;
}
