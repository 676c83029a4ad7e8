// siren.hpp: libsiren for C++17. Header only; it needs siren.h and the library.
//
// - Handles are owned: a guard, a stream and a cancel token free themselves, and move.
// - A call gives siren::expected<T>: a value, or an error with a status and a message. There is no
//   verdict without a score: the value of a failed call cannot be read (value() throws the error).
// - Text is std::string_view and is not copied. Nothing here is shared between objects: threads may
//   use what siren.h says they may.
//
// Every function and option is explained in siren.h; names are the same.
#ifndef SIREN_HPP
#define SIREN_HPP

#include <siren.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#if SIREN_ABI_MAJOR != 0
#error "siren.hpp is for version 0 of libsiren's ABI"
#endif

namespace siren {

/// The statuses of siren.h.
enum class status : std::int32_t {
    ok = SIREN_OK,
    invalid_argument = SIREN_INVALID_ARGUMENT,
    invalid_handle = SIREN_INVALID_HANDLE,
    invalid_utf8 = SIREN_INVALID_UTF8,
    not_found = SIREN_NOT_FOUND,
    io = SIREN_IO,
    invalid_model = SIREN_INVALID_MODEL,
    unsupported = SIREN_UNSUPPORTED,
    network = SIREN_NETWORK,
    unauthorized = SIREN_UNAUTHORIZED,
    offline = SIREN_OFFLINE,
    limit_exceeded = SIREN_LIMIT_EXCEEDED,
    out_of_memory = SIREN_OUT_OF_MEMORY,
    busy = SIREN_BUSY,
    cancelled = SIREN_CANCELLED,
    deadline_exceeded = SIREN_DEADLINE_EXCEEDED,
    poisoned = SIREN_POISONED,
    forked = SIREN_FORKED,
    non_finite = SIREN_NON_FINITE,
    internal = SIREN_INTERNAL,
    in_use = SIREN_IN_USE,
};

/// The name of a status, such as "busy".
inline std::string_view name(status s) { return siren_status_name(static_cast<std::int32_t>(s)); }

/// The library's version, such as "0.1.0".
inline std::string_view version() { return siren_version(); }

/// The library's ABI: its major version times 65,536, plus its minor one.
inline std::uint32_t abi_version() { return siren_abi_version(); }

/// Why a call failed.
struct error {
    siren::status status;
    /// What was wrong and what was expected.
    std::string message;
};

/// An error that somebody did not look at.
class failure : public std::runtime_error {
public:
    explicit failure(const siren::error &e)
        : std::runtime_error(std::string(name(e.status)) + ": " + e.message), status_(e.status)
    {
    }
    siren::status status() const { return status_; }

private:
    siren::status status_;
};

/// A value or an error, as C++23's std::expected, except that a value that is not there is never read:
/// all ways to it throw siren::failure.
template <class T> class [[nodiscard]] expected {
public:
    expected(T value) : held_(std::move(value)) {}
    expected(siren::error e) : held_(std::move(e)) {}

    bool has_value() const noexcept { return held_.index() == 0; }
    explicit operator bool() const noexcept { return has_value(); }

    T &value() & { return check(), *std::get_if<0>(&held_); }
    const T &value() const & { return check(), *std::get_if<0>(&held_); }
    T &&value() && { return check(), std::move(*std::get_if<0>(&held_)); }
    T &operator*() & { return value(); }
    const T &operator*() const & { return value(); }
    T &&operator*() && { return std::move(*this).value(); }
    T *operator->() { return &value(); }
    const T *operator->() const { return &value(); }

    /// Of a failed call; std::bad_variant_access of one that succeeded.
    const siren::error &error() const { return std::get<1>(held_); }

private:
    void check() const
    {
        if (const siren::error *e = std::get_if<1>(&held_)) {
            throw failure(*e);
        }
    }
    std::variant<T, siren::error> held_;
};

/// The outcome of a call that gives nothing.
using done = expected<std::monostate>;

/// What is scored: text alone, or prompt and/or response. An empty text is not an absent one.
struct input {
    std::optional<std::string_view> text, prompt, response;

    input() = default;
    input(std::string_view only) : text(only) {}
    input(const char *only) : text(only) {}
    input(const std::string &only) : text(only) {}
    static input exchange(std::optional<std::string_view> prompt, std::optional<std::string_view> response)
    {
        input made;
        made.prompt = prompt;
        made.response = response;
        return made;
    }
};

/// Overlapping windows over a long text; zeros are the defaults.
struct windows {
    std::uint64_t tokens = 0, stride = 0;
};

/// Of the windows of a text, the one that scored highest, in bytes.
struct window {
    std::uint64_t count, index, start, end;
};

class cancel_token;

/// How to score. What is not said is as siren.h says.
struct score_options {
    std::optional<double> threshold;
    std::optional<siren::windows> windows;
    /// Time from the call until it ends with deadline_exceeded; 0 or less is "at once".
    std::optional<std::chrono::milliseconds> timeout;
    const cancel_token *cancel = nullptr;
    bool wait = false;
};

/// What a text scored. Only the library makes one.
class result {
public:
    /// Probability that the text is harmful, from 0 to 1.
    double score() const { return raw_.score; }
    double threshold() const { return raw_.threshold; }
    bool is_harmful() const { return raw_.is_harmful != 0; }
    bool truncated() const { return raw_.truncated != 0; }
    std::uint64_t tokens() const { return raw_.tokens; }
    std::optional<siren::window> window() const
    {
        if (raw_.windows == 0) {
            return std::nullopt;
        }
        return siren::window{raw_.windows, raw_.window_index, raw_.window_start, raw_.window_end};
    }

private:
    friend class guard;
    explicit result(const siren_result &raw) : raw_(raw) {}
    siren_result raw_;
};

/// What a stream opens with.
struct stream_options {
    std::optional<std::string_view> prompt;
    std::optional<double> threshold;
    std::optional<siren::windows> windows;
    std::uint64_t hysteresis = 0;
};

/// How to push.
struct push_options {
    std::optional<std::chrono::milliseconds> timeout;
    const cancel_token *cancel = nullptr;
    bool wait = false;
    /// Most running scores to give.
    std::size_t token_scores = 0;
};

/// Where a stream's running score first reached the threshold.
struct crossing {
    std::uint64_t token, byte;
};

/// What all of a stream scores after a push. Only the library makes one.
class push_result {
public:
    double score() const { return raw_.score; }
    double threshold() const { return raw_.threshold; }
    bool is_harmful() const { return raw_.is_harmful != 0; }
    bool truncated() const { return raw_.truncated != 0; }
    std::uint64_t tokens() const { return raw_.tokens; }
    std::optional<siren::crossing> crossing() const
    {
        if (raw_.crossed == 0) {
            return std::nullopt;
        }
        return siren::crossing{raw_.crossing_token, raw_.crossing_byte};
    }
    /// Pushed bytes that may be shown.
    std::uint64_t cleared_bytes() const { return raw_.cleared_bytes; }
    std::optional<siren::window> window() const
    {
        if (raw_.windows == 0) {
            return std::nullopt;
        }
        return siren::window{raw_.windows, raw_.window_index, raw_.window_start, raw_.window_end};
    }
    /// The running scores that were asked for; there were token_scores_count() of them.
    const std::vector<double> &token_scores() const { return token_scores_; }
    std::uint64_t token_scores_count() const { return raw_.token_scores_count; }
    std::uint64_t first_scored() const { return raw_.first_scored; }

private:
    friend class stream;
    push_result(const siren_push_result &raw, std::vector<double> scores)
        : raw_(raw), token_scores_(std::move(scores))
    {
    }
    siren_push_result raw_;
    std::vector<double> token_scores_;
};

namespace detail {

inline siren_error new_error()
{
    siren_error e;
    siren_error_init(&e, sizeof e);
    return e;
}

inline siren::error error_of(std::int32_t s, const siren_error &e)
{
    return {static_cast<status>(s), s == e.status ? std::string(e.message) : std::string(siren_status_name(s))};
}

inline siren_text text(std::optional<std::string_view> t)
{
    if (!t) {
        return {nullptr, 0};
    }
    // NULL would say "absent".
    return {t->data() == nullptr ? "" : t->data(), t->size()};
}

/// Milliseconds of which 0 is "none"; a time limit that has passed is the shortest there is.
inline std::uint64_t timeout(std::optional<std::chrono::milliseconds> limit)
{
    if (!limit) {
        return 0;
    }
    return limit->count() > 0 ? static_cast<std::uint64_t>(limit->count()) : 1;
}

inline siren_input input(const siren::input &in)
{
    siren_input made;
    siren_input_init(&made, sizeof made);
    made.text = text(in.text);
    made.prompt = text(in.prompt);
    made.response = text(in.response);
    return made;
}

/// A handle and the function that frees it.
template <class H, std::int32_t (*Free)(H *)> class owner {
public:
    explicit owner(H *handle = nullptr) : handle_(handle) {}
    owner(owner &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    owner &operator=(owner &&other) noexcept
    {
        std::swap(handle_, other.handle_);
        return *this;
    }
    ~owner() { Free(handle_); }
    H *get() const noexcept { return handle_; }

private:
    H *handle_;
};

/// Calls `write(buffer, capacity, &length, &error)` with room enough for what it writes.
template <class W> expected<std::string> written(W write)
{
    siren_error e = new_error();
    std::string text(4096, '\0');
    for (;;) {
        std::size_t length = 0;
        const std::int32_t s = write(&text[0], text.size(), &length, &e);
        if (s == SIREN_OK) {
            text.resize(length);
            return text;
        }
        if (s != SIREN_INVALID_ARGUMENT || length < text.size()) {
            return error_of(s, e);
        }
        text.resize(length + length / 4 + 1);
    }
}

} // namespace detail

/// Ends the calls whose options name it, from any thread. It must live while they begin.
class cancel_token {
public:
    static expected<cancel_token> make()
    {
        siren_error e = detail::new_error();
        siren_cancel_token *token = nullptr;
        if (const std::int32_t s = siren_cancel_token_new(&token, &e)) {
            return detail::error_of(s, e);
        }
        return cancel_token(token);
    }
    done cancel() const
    {
        siren_error e = detail::new_error();
        if (const std::int32_t s = siren_cancel(get(), &e)) {
            return detail::error_of(s, e);
        }
        return std::monostate();
    }
    siren_cancel_token *get() const noexcept { return handle_.get(); }

private:
    explicit cancel_token(siren_cancel_token *token) : handle_(token) {}
    detail::owner<siren_cancel_token, siren_cancel_token_free> handle_;
};

/// A growing text on a guard, which it outlives. One thread at a time: else in_use.
class stream {
public:
    /// Adds UTF-8, which may split a character, and scores all of the stream.
    expected<push_result> push(std::string_view chunk, const push_options &options = {})
    {
        return run(options, [&](const siren_push_options *o, siren_push_result *r, siren_error *e) {
            return siren_stream_push(get(), chunk.data(), chunk.size(), o, r, e);
        });
    }
    /// Says that nothing more comes.
    expected<push_result> finish(const push_options &options = {})
    {
        return run(options, [&](const siren_push_options *o, siren_push_result *r, siren_error *e) {
            return siren_stream_finish(get(), o, r, e);
        });
    }
    /// Forgets what was pushed; keeps the prompt and the options.
    done reset()
    {
        siren_error e = detail::new_error();
        if (const std::int32_t s = siren_stream_reset(get(), &e)) {
            return detail::error_of(s, e);
        }
        return std::monostate();
    }
    /// A second stream in the same state.
    expected<stream> fork() const
    {
        siren_error e = detail::new_error();
        siren_stream *forked = nullptr;
        if (const std::int32_t s = siren_stream_fork(get(), &forked, &e)) {
            return detail::error_of(s, e);
        }
        return stream(forked);
    }
    siren_stream *get() const noexcept { return handle_.get(); }

private:
    friend class guard;
    explicit stream(siren_stream *handle) : handle_(handle) {}

    template <class F> expected<push_result> run(const push_options &options, F call)
    {
        siren_push_options o;
        siren_push_options_init(&o, sizeof o);
        siren_push_result r;
        siren_push_result_init(&r, sizeof r);
        siren_error e = detail::new_error();
        std::vector<double> scores(options.token_scores);
        o.wait = options.wait;
        o.cancel = options.cancel == nullptr ? nullptr : options.cancel->get();
        o.timeout_ms = detail::timeout(options.timeout);
        o.token_scores = scores.empty() ? nullptr : scores.data();
        o.token_scores_capacity = scores.size();
        if (const std::int32_t s = call(&o, &r, &e)) {
            return detail::error_of(s, e);
        }
        if (r.token_scores_count < scores.size()) {
            scores.resize(static_cast<std::size_t>(r.token_scores_count));
        }
        return push_result(r, std::move(scores));
    }
    detail::owner<siren_stream, siren_stream_free> handle_;
};

/// How to open a guard; what is empty or 0 is as siren.h says.
struct open_options {
    std::string_view model, backbone, device, dtype, cache_dir, hub_endpoint, hub_token, data_dir;
    std::string_view packed_cache;
    std::uint32_t threads = 0;
    std::uint64_t max_length = 0, max_text_bytes = 0, max_batch = 0, max_queue = 0, max_streams = 0;
    std::uint64_t kv_bytes = 0, prefix_cache_bytes = 0;
    bool offline = false, read_weights = false, no_prefix_cache = false;
    siren_progress_callback progress = nullptr;
    void *progress_user_data = nullptr;
};

/// An open guard. Any number of threads may use it.
class guard {
public:
    static expected<guard> open(const open_options &options = {})
    {
        siren_open_options o;
        siren_open_options_init(&o, sizeof o);
        const auto given = [](std::string_view t) {
            return t.empty() ? siren_text{nullptr, 0} : siren_text{t.data(), t.size()};
        };
        o.model = given(options.model);
        o.backbone = given(options.backbone);
        o.device = given(options.device);
        o.dtype = given(options.dtype);
        o.cache_dir = given(options.cache_dir);
        o.hub_endpoint = given(options.hub_endpoint);
        o.hub_token = given(options.hub_token);
        o.data_dir = given(options.data_dir);
        o.packed_cache = given(options.packed_cache);
        o.threads = options.threads;
        o.max_length = options.max_length;
        o.max_text_bytes = options.max_text_bytes;
        o.max_batch = options.max_batch;
        o.max_queue = options.max_queue;
        o.max_streams = options.max_streams;
        o.kv_bytes = options.kv_bytes;
        o.prefix_cache_bytes = options.prefix_cache_bytes;
        o.offline = options.offline;
        o.read_weights = options.read_weights;
        o.no_prefix_cache = options.no_prefix_cache;
        o.progress = options.progress;
        o.progress_user_data = options.progress_user_data;
        siren_error e = detail::new_error();
        siren_guard *opened = nullptr;
        if (const std::int32_t s = siren_open(&o, &opened, &e)) {
            return detail::error_of(s, e);
        }
        return guard(opened);
    }

    expected<result> score(const input &in, const score_options &options = {}) const
    {
        const siren_input i = detail::input(in);
        const siren_score_options o = raw(options);
        siren_result r;
        siren_result_init(&r, sizeof r);
        siren_error e = detail::new_error();
        if (const std::int32_t s = siren_score(get(), &i, &o, &r, &e)) {
            return detail::error_of(s, e);
        }
        return result(r);
    }

    /// Each input has its own result or error; a call that fails as a whole gives none.
    expected<std::vector<expected<result>>> score_batch(
        const std::vector<input> &inputs, const score_options &options = {}) const
    {
        std::vector<siren_input> raw_inputs;
        raw_inputs.reserve(inputs.size());
        for (const input &in : inputs) {
            raw_inputs.push_back(detail::input(in));
        }
        siren_result none;
        siren_result_init(&none, sizeof none);
        std::vector<siren_result> results(inputs.size(), none);
        std::vector<siren_error> errors(inputs.size(), detail::new_error());
        const siren_score_options o = raw(options);
        siren_error e = detail::new_error();
        if (const std::int32_t s = siren_score_batch(
                get(), raw_inputs.data(), raw_inputs.size(), &o, results.data(), errors.data(), &e)) {
            return detail::error_of(s, e);
        }
        std::vector<expected<result>> scored;
        scored.reserve(inputs.size());
        for (std::size_t i = 0; i < inputs.size(); i++) {
            if (results[i].status == SIREN_OK) {
                scored.emplace_back(result(results[i]));
            } else {
                scored.emplace_back(detail::error_of(results[i].status, errors[i]));
            }
        }
        return scored;
    }

    expected<siren::stream> new_stream(const stream_options &options = {}) const
    {
        siren_stream_options o;
        siren_stream_options_init(&o, sizeof o);
        o.has_threshold = options.threshold.has_value();
        o.threshold = options.threshold.value_or(0);
        o.prompt = detail::text(options.prompt);
        o.hysteresis = options.hysteresis;
        o.windows = options.windows.has_value();
        o.window_tokens = options.windows ? options.windows->tokens : 0;
        o.window_stride = options.windows ? options.windows->stride : 0;
        siren_error e = detail::new_error();
        siren_stream *made = nullptr;
        if (const std::int32_t s = siren_stream_new(get(), &o, &made, &e)) {
            return detail::error_of(s, e);
        }
        return siren::stream(made);
    }

    done warmup() const
    {
        siren_error e = detail::new_error();
        if (const std::int32_t s = siren_warmup(get(), &e)) {
            return detail::error_of(s, e);
        }
        return std::monostate();
    }

    expected<siren_guard_info> info() const
    {
        siren_guard_info told;
        siren_info_init(&told, sizeof told);
        siren_error e = detail::new_error();
        if (const std::int32_t s = siren_info(get(), &told, &e)) {
            return detail::error_of(s, e);
        }
        return told;
    }

    expected<siren_guard_stats> stats() const
    {
        siren_guard_stats told;
        siren_stats_init(&told, sizeof told);
        siren_error e = detail::new_error();
        if (const std::int32_t s = siren_stats(get(), &told, &e)) {
            return detail::error_of(s, e);
        }
        return told;
    }

    expected<std::string> info_json() const
    {
        return detail::written([&](char *b, std::size_t n, std::size_t *length, siren_error *e) {
            return siren_info_json(get(), b, n, length, e);
        });
    }

    expected<std::string> stats_prometheus() const
    {
        return detail::written([&](char *b, std::size_t n, std::size_t *length, siren_error *e) {
            return siren_stats_prometheus(get(), b, n, length, e);
        });
    }

    /// The record of a result that this guard gave `in`: hashes, and no text.
    expected<std::string> audit_json(const input &in, const result &r) const
    {
        const siren_input i = detail::input(in);
        return detail::written([&](char *b, std::size_t n, std::size_t *length, siren_error *e) {
            return siren_audit_json(get(), &i, &r.raw_, b, n, length, e);
        });
    }

    /// For the functions of siren.h that have no form here.
    siren_guard *get() const noexcept { return handle_.get(); }

private:
    explicit guard(siren_guard *handle) : handle_(handle) {}

    static siren_score_options raw(const score_options &options)
    {
        siren_score_options o;
        siren_score_options_init(&o, sizeof o);
        o.has_threshold = options.threshold.has_value();
        o.threshold = options.threshold.value_or(0);
        o.cancel = options.cancel == nullptr ? nullptr : options.cancel->get();
        o.timeout_ms = detail::timeout(options.timeout);
        o.wait = options.wait;
        o.windows = options.windows.has_value();
        o.window_tokens = options.windows ? options.windows->tokens : 0;
        o.window_stride = options.windows ? options.windows->stride : 0;
        return o;
    }
    detail::owner<siren_guard, siren_free> handle_;
};

/// Sends the library's log lines up to `level` (1 to 5) to `callback`; NULL ends that.
inline done set_log(siren_log_callback callback, void *user_data, std::int32_t level)
{
    siren_error e = detail::new_error();
    if (const std::int32_t s = siren_log_set(callback, user_data, level, &e)) {
        return detail::error_of(s, e);
    }
    return std::monostate();
}

} // namespace siren

#endif // SIREN_HPP
