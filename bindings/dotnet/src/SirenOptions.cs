using System;
using System.Threading;

namespace Siren
{
    /// <summary>How to open a guard. What is null or 0 is the library's default.</summary>
    public sealed class SirenOpenOptions
    {
        /// <summary>The backbone's directory, repository or GGUF file; null is what the artifact names.</summary>
        public string? Backbone { get; set; }
        /// <summary><c>auto</c>, <c>cpu</c>, <c>cuda</c> or <c>cuda:N</c>.</summary>
        public string? Device { get; set; }
        /// <summary><c>auto</c>, <c>f32</c>, <c>bf16</c> or <c>int8</c>.</summary>
        public string? Dtype { get; set; }
        /// <summary>The hub's cache; null is HF_HUB_CACHE, HF_HOME, or the user's cache directory.</summary>
        public string? CacheDirectory { get; set; }
        /// <summary>The hub's address; null is HF_ENDPOINT, or the public hub.</summary>
        public string? HubEndpoint { get; set; }
        /// <summary>The hub's access token; null is HF_TOKEN, or the token file.</summary>
        public string? HubToken { get; set; }
        /// <summary>Where <c>models/demo</c> lies; null is SIREN_DATA_DIR, the package's, or beside the library.</summary>
        public string? DataDirectory { get; set; }
        /// <summary>
        /// A directory in which packed weights are kept in a file, which the next open maps and processes
        /// share; <c>auto</c> is <c>packed</c> beside the backbone's weights, null keeps none.
        /// </summary>
        public string? PackedCache { get; set; }
        /// <summary>Threads of the guard's own pool; 0 is what affinity and the cgroup's quota allow.</summary>
        public int Threads { get; set; }
        /// <summary>Longest text in tokens; 0 is the artifact's.</summary>
        public long MaxLength { get; set; }
        /// <summary>Longest text in bytes; 0 is 4 MiB.</summary>
        public long MaxTextBytes { get; set; }
        /// <summary>Most texts of one batch; 0 is 16,384.</summary>
        public long MaxBatch { get; set; }
        /// <summary>Most texts that wait, over all callers; 0 is 65,536.</summary>
        public long MaxQueue { get; set; }
        /// <summary>Most streams that are open at once; 0 is 16,384.</summary>
        public long MaxStreams { get; set; }
        /// <summary>Most bytes that open streams and the prefix cache hold together; 0 is 1 GiB.</summary>
        public long KvBytes { get; set; }
        /// <summary>Of these, most bytes of the prefix cache; 0 is 256 MiB.</summary>
        public long PrefixCacheBytes { get; set; }
        /// <summary>Runs without a prefix cache.</summary>
        public bool NoPrefixCache { get; set; }
        /// <summary>Never touches the network; else HF_HUB_OFFLINE decides.</summary>
        public bool Offline { get; set; }
        /// <summary>Reads the weights into memory instead of mapping them.</summary>
        public bool ReadWeights { get; set; }
        /// <summary>Told how downloads go, on the thread that opens.</summary>
        public IProgress<SirenDownload>? Progress { get; set; }
    }

    /// <summary>How a download goes.</summary>
    public readonly struct SirenDownload
    {
        internal SirenDownload(string file, long done, long total)
        {
            File = file;
            Done = done;
            Total = total;
        }

        /// <summary>The file's name.</summary>
        public string File { get; }
        /// <summary>Bytes that are here.</summary>
        public long Done { get; }
        /// <summary>Bytes in all; 0 while that is not known.</summary>
        public long Total { get; }
    }

    /// <summary>Overlapping windows over a text that is longer than the guard reads at once.</summary>
    public sealed class SirenWindows
    {
        /// <summary>Tokens of a window, special ones included; 0 is the guard's longest text.</summary>
        public long Tokens { get; set; }
        /// <summary>Tokens of text from one window's start to the next one's; 0 is half of a window's.</summary>
        public long Stride { get; set; }
    }

    /// <summary>How to score. What is not set is the default.</summary>
    public sealed class SirenScoreOptions
    {
        /// <summary>From 0 to 1: what the score is compared with; null is the guard's own.</summary>
        public double? Threshold { get; set; }
        /// <summary>Reads a long text in windows, whose highest score is the text's; null cuts it.</summary>
        public SirenWindows? Windows { get; set; }
        /// <summary>
        /// Time from the call until it ends with <see cref="SirenTimeoutException"/>; null and
        /// <see cref="System.Threading.Timeout.InfiniteTimeSpan"/> are none.
        /// </summary>
        public TimeSpan? Timeout { get; set; }
        /// <summary>
        /// Waits for a place when the queue is full; else that is <see cref="SirenStatus.Busy"/>. Of
        /// asynchronous calls, as many texts again as the queue holds may wait so.
        /// </summary>
        public bool Wait { get; set; }

        internal static unsafe void Fill(SirenScoreOptions? options, IntPtr cancel, NativeScoreOptions* native)
        {
            *native = default;
            native->StructSize = (uint)sizeof(NativeScoreOptions);
            native->Cancel = cancel;
            if (options == null)
            {
                return;
            }
            native->HasThreshold = options.Threshold.HasValue ? 1u : 0;
            native->Threshold = options.Threshold.GetValueOrDefault();
            native->TimeoutMs = Number.Milliseconds(options.Timeout);
            native->Wait = options.Wait ? 1u : 0;
            if (options.Windows is SirenWindows windows)
            {
                native->Windows = 1;
                native->WindowTokens = Number.Count(windows.Tokens, nameof(SirenWindows.Tokens));
                native->WindowStride = Number.Count(windows.Stride, nameof(SirenWindows.Stride));
            }
        }
    }

    /// <summary>What a stream scores, and how. What is not set is the default.</summary>
    public sealed class SirenStreamOptions
    {
        /// <summary>What the growing text answers, or absent.</summary>
        public SirenText Prompt { get; set; }
        /// <summary>From 0 to 1: what scores are compared with; null is the guard's own.</summary>
        public double? Threshold { get; set; }
        /// <summary>Tokens in a row at or above the threshold before they count as a crossing.</summary>
        public long Hysteresis { get; set; }
        /// <summary>Goes on past the guard's longest text in windows; null keeps the first tokens' score.</summary>
        public SirenWindows? Windows { get; set; }
    }

    /// <summary>How to push. What is not set is the default.</summary>
    public sealed class SirenPushOptions
    {
        /// <summary>As in <see cref="SirenScoreOptions.Timeout"/>.</summary>
        public TimeSpan? Timeout { get; set; }
        /// <summary>As in <see cref="SirenScoreOptions.Wait"/>.</summary>
        public bool Wait { get; set; }
        /// <summary>Most running scores to give in <see cref="SirenPushResult.TokenScores"/>.</summary>
        public int TokenScores { get; set; }
    }

    /// <summary>Numbers in the library's form.</summary>
    internal static class Number
    {
        public static ulong Count(long value, string name) =>
            value >= 0 ? (ulong)value : throw new ArgumentOutOfRangeException(name, value, "expected 0 (the default) or more");

        /// <summary>Milliseconds of which 0 is "none"; a time limit that has passed is the shortest there is.</summary>
        public static ulong Milliseconds(TimeSpan? limit)
        {
            if (limit is not TimeSpan given || given == Timeout.InfiniteTimeSpan)
            {
                return 0;
            }
            return given <= TimeSpan.Zero ? 1 : (ulong)Math.Ceiling(given.TotalMilliseconds);
        }
    }
}
