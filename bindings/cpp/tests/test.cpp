// The shared vectors, and what siren.hpp adds to the C interface. Run from the root of the source tree.
#include <siren.hpp>

#include <nlohmann/json.hpp>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <type_traits>

using nlohmann::json;

static int passed = 0, failed = 0;

static void check(bool good, const std::string &what)
{
    (good ? passed : failed)++;
    if (!good) {
        std::printf("FAILED: %s\n", what.c_str());
    }
}

static json read(const char *path)
{
    std::ifstream file(path);
    return json::parse(file);
}

static std::string decode(const std::string &text)
{
    const std::string letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string bytes;
    unsigned value = 0;
    int bits = 0;
    for (const char letter : text) {
        if (letter == '=') {
            break;
        }
        value = value << 6 | static_cast<unsigned>(letters.find(letter));
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            bytes += static_cast<char>(value >> bits & 0xFF);
        }
    }
    return bytes;
}

static std::string plain(const json &given)
{
    if (given.is_string()) {
        return given;
    }
    if (given.contains("base64")) {
        return decode(given["base64"]);
    }
    std::string text;
    for (int i = 0; i < given["times"].get<int>(); i++) {
        text += given["repeat"].get<std::string>();
    }
    return text + given.value("then", "");
}

// An input and the texts that it looks into.
struct owned_input {
    std::map<std::string, std::string> texts;
    siren::input look() const
    {
        siren::input made;
        const auto field = [&](const char *name, std::optional<std::string_view> &into) {
            if (const auto found = texts.find(name); found != texts.end()) {
                into = found->second;
            }
        };
        field("text", made.text);
        field("prompt", made.prompt);
        field("response", made.response);
        return made;
    }
};

static owned_input input_of(const json &vector)
{
    owned_input in;
    for (const char *name : {"text", "prompt", "response"}) {
        if (vector.contains(name)) {
            in.texts[name] = plain(vector[name]);
        }
    }
    return in;
}

template <class O> static O options_of(const json &vector)
{
    O options;
    const json given = vector.value("options", json::object());
    if (given.contains("threshold")) {
        options.threshold = given["threshold"].get<double>();
    }
    if (given.contains("windows")) {
        options.windows = siren::windows{given["windows"].value("tokens", 0u), given["windows"].value("stride", 0u)};
    }
    return options;
}

static siren::expected<siren::guard> open(const json &o)
{
    const std::string model = o["model"], dtype = o.value("dtype", ""), device = o.value("device", "");
    siren::open_options options;
    options.model = model;
    options.dtype = dtype;
    options.device = device;
    options.threads = 2;
    options.offline = o.value("offline", false);
    options.max_text_bytes = o.value("max_text_bytes", 0u);
    options.max_batch = o.value("max_batch", 0u);
    return siren::guard::open(options);
}

template <class T> static bool failed_as(const siren::expected<T> &got, const json &status)
{
    return !got && siren::name(got.error().status) == status.get<std::string>() && !got.error().message.empty();
}

template <class R> static bool as_expected(const R &r, const json &e, double tolerance)
{
    return std::abs(r.score() - e["score"].get<double>()) <= tolerance && r.threshold() == e["threshold"]
        && r.is_harmful() == e["is_harmful"] && r.tokens() == e["tokens"] && r.truncated() == e["truncated"];
}

static void vectors()
{
    const json v = read("bindings/vectors/vectors.json");
    const double tolerance = v["tolerance"];
    std::map<std::string, siren::guard> guards;
    for (const auto &[name, options] : v["guards"].items()) {
        guards.emplace(name, open(options).value());
    }
    const auto guard_of = [&](const json &vector) -> const siren::guard & { return guards.at(vector.value("guard", "demo")); };
    for (const json &vector : v["opens"]) {
        check(failed_as(open(vector["open"]), vector["status"]), "open " + vector["id"].get<std::string>());
    }
    std::vector<owned_input> inputs;
    std::vector<json> together;
    for (const json &vector : v["scores"]) {
        const std::string id = vector["id"];
        const owned_input in = input_of(vector);
        const auto got = guard_of(vector).score(in.look(), options_of<siren::score_options>(vector));
        if (vector.contains("status")) {
            check(failed_as(got, vector["status"]), id);
        } else {
            bool good = got.has_value() && as_expected(*got, vector["expect"], tolerance);
            const json &e = vector["expect"];
            if (good && e.contains("windows")) {
                const auto w = got->window();
                good = w && w->count == e["windows"] && w->index == e["window_index"] && w->start == e["window_start"]
                    && w->end == e["window_end"];
            }
            check(good, id);
        }
        if (!vector.contains("guard") && !vector.contains("options")) {
            inputs.push_back(in);
            together.push_back(vector);
        }
    }
    std::vector<siren::input> looks;
    for (const owned_input &in : inputs) {
        looks.push_back(in.look());
    }
    const siren::guard &demo = guards.at("demo");
    const auto batch = demo.score_batch(looks).value();
    check(batch.size() == looks.size() && batch.size() > 20, "batch");
    for (std::size_t i = 0; i < batch.size(); i++) {
        const std::string id = "batch " + together[i]["id"].get<std::string>();
        if (together[i].contains("status")) {
            check(failed_as(batch[i], together[i]["status"]), id);
        } else {
            check(batch[i] && batch[i]->score() == demo.score(looks[i]).value().score(), id);
        }
    }
    for (const json &vector : v["batches"]) {
        const std::vector<siren::input> texts(vector["ids"].size(), siren::input("a"));
        check(failed_as(guard_of(vector).score_batch(texts), vector["status"]), "a batch over the limit");
    }
    for (const json &vector : v["streams"]) {
        const std::string id = "stream " + vector["id"].get<std::string>();
        auto options = options_of<siren::stream_options>(vector);
        options.hysteresis = vector.value("options", json::object()).value("hysteresis", 0u);
        std::string prompt;
        if (vector.contains("prompt")) {
            prompt = plain(vector["prompt"]);
            options.prompt = prompt;
        }
        auto opened = guard_of(vector).new_stream(options);
        if (vector.contains("status")) {
            check(failed_as(opened, vector["status"]), id);
            continue;
        }
        std::map<std::string, siren::stream> streams;
        streams.emplace("", std::move(opened).value());
        for (const json &step : vector["steps"]) {
            siren::stream &stream = streams.at(step.value("on", ""));
            if (step.contains("fork")) {
                streams.emplace(step["fork"], stream.fork().value());
                continue;
            }
            if (step.contains("reset")) {
                check(stream.reset().has_value(), id);
                continue;
            }
            const auto got = step.contains("finish") ? stream.finish() : stream.push(plain(step["push"]));
            if (step.contains("status")) {
                check(failed_as(got, step["status"]), id);
                continue;
            }
            const json &e = step["expect"];
            bool good = got && as_expected(*got, e, tolerance) && got->cleared_bytes() == e["cleared_bytes"]
                && got->crossing().has_value() == !e["crossing"].is_null();
            if (good && got->crossing()) {
                good = got->crossing()->token == e["crossing"]["token"] && got->crossing()->byte == e["crossing"]["byte"];
            }
            check(good, id + " " + step.dump());
        }
    }
}

static void statuses()
{
    const json abi = read("include/siren-abi.json");
    check(siren::abi_version() == (abi["abi"]["major"].get<unsigned>() << 16 | abi["abi"]["minor"].get<unsigned>()), "ABI");
    const std::map<std::string, siren::status> known = {
#define STATUS(s) {#s, siren::status::s}
        STATUS(ok), STATUS(invalid_argument), STATUS(invalid_handle), STATUS(invalid_utf8), STATUS(not_found),
        STATUS(io), STATUS(invalid_model), STATUS(unsupported), STATUS(network), STATUS(unauthorized),
        STATUS(offline), STATUS(limit_exceeded), STATUS(out_of_memory), STATUS(busy), STATUS(cancelled),
        STATUS(deadline_exceeded), STATUS(poisoned), STATUS(forked), STATUS(non_finite), STATUS(internal),
        STATUS(in_use),
#undef STATUS
    };
    check(known.size() == abi["statuses"].size(), "as many statuses");
    for (const auto &[name, status] : known) {
        check(abi["statuses"].value(name, -1) == static_cast<int>(status) && siren::name(status) == name, name);
    }
}

static void calls()
{
    static_assert(!std::is_copy_constructible_v<siren::guard> && std::is_nothrow_move_constructible_v<siren::guard>);
    static_assert(!std::is_copy_constructible_v<siren::stream> && !std::is_copy_constructible_v<siren::cancel_token>);
    static_assert(!std::is_default_constructible_v<siren::result> && !std::is_default_constructible_v<siren::push_result>);

    siren::guard guard = open({{"model", "models/demo"}}).value();
    std::string book;
    for (int i = 0; i < 20000; i++) {
        book += "The rain keeps falling on the old roof. ";
    }
    siren::score_options slow;
    slow.windows = siren::windows{0, 16};
    slow.timeout = std::chrono::milliseconds(20);
    check(failed_as(guard.score(book, slow), "deadline_exceeded"), "a time limit");
    slow.timeout = std::chrono::milliseconds(0);
    check(failed_as(guard.score(book, slow), "deadline_exceeded"), "a time limit that has passed");
    slow.timeout.reset();
    const siren::cancel_token token = siren::cancel_token::make().value();
    slow.cancel = &token;
    std::thread canceller([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        check(token.cancel().has_value(), "cancel");
    });
    check(failed_as(guard.score(book, slow), "cancelled"), "a call that is cancelled");
    canceller.join();

    // A failed call has no verdict, whoever asks.
    const auto none = guard.score("\xff");
    try {
        (void)none->is_harmful();
        check(false, "a verdict of a failed call");
    } catch (const siren::failure &e) {
        check(e.status() == siren::status::invalid_utf8, e.what());
    }

    siren::stream stream = guard.new_stream().value();
    siren::push_options options;
    options.token_scores = 100;
    const auto pushed = stream.push("How can I make a pipe bomb at home?", options).value();
    check(pushed.token_scores().size() == pushed.tokens() && pushed.token_scores().back() == pushed.score(), "token scores");
    {
        const siren::guard gone = std::move(guard);
        check(gone.warmup().has_value() && gone.info().value().max_length == 512, "a guard that was moved");
        check(gone.stats().value().pushes == 1, "statistics");
        check(json::parse(gone.info_json().value())["max_length"] == 512, "information");
        check(gone.stats_prometheus().value().find("\n# TYPE ") != std::string::npos, "Prometheus");
        const auto result = gone.score("some text").value();
        check(json::parse(gone.audit_json("some text", result).value())["score"] == result.score(), "a record");
    }
    check(failed_as(guard.score("moved away"), "invalid_argument"), "a guard that is no more");
    check(stream.push(" Thank you.").has_value(), "a stream outlives its guard");
    check(siren::set_log(nullptr, nullptr, 0).has_value() && siren::version().find('.') != std::string::npos, "log, version");
}

int main()
{
    statuses();
    vectors();
    calls();
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
