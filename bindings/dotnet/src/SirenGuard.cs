using System;
using System.Buffers;
using System.Collections.Generic;
using System.Runtime.InteropServices;
using System.Threading;

namespace Siren
{
    /// <summary>
    /// An open guard, which tells how harmful a text is. Any number of threads may use it.
    /// </summary>
    /// <remarks>
    /// A call that fails throws and gives no verdict: <see cref="SirenException"/> with a
    /// <see cref="SirenStatus"/>; <see cref="SirenTimeoutException"/>, which is one, when its time limit
    /// passed; <see cref="OperationCanceledException"/> when its token was cancelled; and
    /// <see cref="ObjectDisposedException"/> when the guard was disposed.
    /// </remarks>
    public sealed unsafe partial class SirenGuard : IDisposable
    {
        private const int SmallText = 1024;

        private readonly GuardHandle handle;

        private SirenGuard(GuardHandle handle) => this.handle = handle;

        /// <summary>Opens a guard. It blocks while files are read, and fetched where they are not here.</summary>
        /// <param name="model">
        /// A directory, or a hub repository <c>OWNER/NAME[@REVISION]</c>; null is the demo guard that ships
        /// with the library.
        /// </param>
        /// <param name="options">What is null or 0 in it is the library's default.</param>
        /// <exception cref="SirenException">It cannot be opened.</exception>
        /// <exception cref="DllNotFoundException">The library is not found: the message says where it was looked for.</exception>
        public static SirenGuard Open(string? model = null, SirenOpenOptions? options = null)
        {
            options ??= new SirenOpenOptions();
            Native api = Native.Api;
            string?[] given =
            {
                model, options.Backbone, options.Device, options.Dtype, options.CacheDirectory,
                options.HubEndpoint, options.HubToken, options.DataDirectory ?? NativeLoader.PackagedData(),
                options.PackedCache,
            };
            long characters = 0;
            foreach (string? text in given)
            {
                characters += text?.Length ?? 0;
            }
            var texts = new Texts(characters);
            GCHandle progress = default;
            try
            {
                NativeOpenOptions native = default;
                native.StructSize = (uint)sizeof(NativeOpenOptions);
                native.Model = texts.AddGiven(given[0]);
                native.Backbone = texts.AddGiven(given[1]);
                native.Device = texts.AddGiven(given[2]);
                native.Dtype = texts.AddGiven(given[3]);
                native.CacheDir = texts.AddGiven(given[4]);
                native.HubEndpoint = texts.AddGiven(given[5]);
                native.HubToken = texts.AddGiven(given[6]);
                native.DataDir = texts.AddGiven(given[7]);
                native.PackedCache = texts.AddGiven(given[8]);
                native.Threads = checked((uint)Number.Count(options.Threads, nameof(options.Threads)));
                native.MaxLength = Number.Count(options.MaxLength, nameof(options.MaxLength));
                native.MaxTextBytes = Number.Count(options.MaxTextBytes, nameof(options.MaxTextBytes));
                native.MaxBatch = Number.Count(options.MaxBatch, nameof(options.MaxBatch));
                native.MaxQueue = Number.Count(options.MaxQueue, nameof(options.MaxQueue));
                native.MaxStreams = Number.Count(options.MaxStreams, nameof(options.MaxStreams));
                native.KvBytes = Number.Count(options.KvBytes, nameof(options.KvBytes));
                native.PrefixCacheBytes = Number.Count(options.PrefixCacheBytes, nameof(options.PrefixCacheBytes));
                native.NoPrefixCache = options.NoPrefixCache ? 1u : 0;
                native.Offline = options.Offline ? 1u : 0;
                native.ReadWeights = options.ReadWeights ? 1u : 0;
                Downloading? downloading = null;
                if (options.Progress != null)
                {
                    downloading = new Downloading(options.Progress);
                    progress = GCHandle.Alloc(downloading);
                    native.Progress = Callbacks.ProgressPointer;
                    native.ProgressUserData = GCHandle.ToIntPtr(progress);
                }
                IntPtr opened;
                NativeError error;
                Failure.Prepare(&error);
                Failure.Check(api.Open(&native, &opened, &error), &error);
                var guard = new SirenGuard(new GuardHandle(opened));
                if (downloading?.Thrown is Exception thrown)
                {
                    guard.Dispose();
                    throw thrown;
                }
                return guard;
            }
            finally
            {
                texts.Dispose();
                if (progress.IsAllocated)
                {
                    progress.Free();
                }
            }
        }

        /// <summary>
        /// Frees the guard. Calls that run still finish, and its streams go on. A guard that is not
        /// disposed is freed as garbage.
        /// </summary>
        public void Dispose() => handle.Dispose();

        /// <summary>Runs one short text, so that the first call is as fast as the second.</summary>
        /// <exception cref="SirenException">It failed.</exception>
        public void Warmup()
        {
            using var held = new Held(handle);
            NativeError error;
            Failure.Prepare(&error);
            Failure.Check(Native.Api.Warmup(held.Value, &error), &error);
        }

        /// <summary>Scores one text.</summary>
        /// <param name="text">The text. Half of a surrogate pair alone is <see cref="SirenStatus.InvalidUtf8"/>.</param>
        /// <param name="options">How; null is the defaults.</param>
        /// <param name="cancellation">Ends the call inside the library.</param>
        /// <returns>What it scored.</returns>
        /// <exception cref="SirenException">There is no score; the status says why.</exception>
        /// <exception cref="OperationCanceledException"><paramref name="cancellation"/> was cancelled.</exception>
        public SirenResult Score(string text, SirenScoreOptions? options = null, CancellationToken cancellation = default)
        {
            if (text == null)
            {
                throw new ArgumentNullException(nameof(text));
            }
            int room = Utf8.Room(text.Length);
            byte[]? rented = null;
            byte* small = stackalloc byte[SmallText];
            if (room > SmallText)
            {
                rented = ArrayPool<byte>.Shared.Rent(room);
            }
            try
            {
                fixed (char* characters = text)
                fixed (byte* large = rented)
                {
                    byte* buffer = rented == null ? small : large;
                    return ScoreBytes(buffer, Utf8.Write(characters, text.Length, buffer), options, cancellation);
                }
            }
            finally
            {
                if (rented != null)
                {
                    ArrayPool<byte>.Shared.Return(rented);
                }
            }
        }

        /// <summary>Scores one text of UTF-8 bytes, which are not copied.</summary>
        /// <inheritdoc cref="Score(string, SirenScoreOptions?, CancellationToken)"/>
        public SirenResult Score(ReadOnlySpan<byte> utf8, SirenScoreOptions? options = null, CancellationToken cancellation = default)
        {
            byte none = 0;
            fixed (byte* start = utf8)
            {
                // NULL would say "absent".
                return ScoreBytes(start == null ? &none : start, utf8.Length, options, cancellation);
            }
        }

        /// <summary>Scores one input: a text, or a prompt and a response.</summary>
        /// <inheritdoc cref="Score(string, SirenScoreOptions?, CancellationToken)"/>
        public SirenResult Score(SirenInput input, SirenScoreOptions? options = null, CancellationToken cancellation = default)
        {
            var texts = new Texts(Texts.Characters(input));
            try
            {
                NativeInput native;
                texts.Add(input, &native);
                return Score(&native, options, cancellation);
            }
            finally
            {
                texts.Dispose();
            }
        }

        private SirenResult ScoreBytes(byte* text, int length, SirenScoreOptions? options, CancellationToken cancellation)
        {
            NativeInput native = default;
            native.StructSize = (uint)sizeof(NativeInput);
            native.Text.Data = text;
            native.Text.Length = (nuint)length;
            return Score(&native, options, cancellation);
        }

        private SirenResult Score(NativeInput* input, SirenScoreOptions? options, CancellationToken cancellation)
        {
            using var held = new Held(handle);
            using var cancelling = new Cancelling(cancellation);
            NativeScoreOptions native;
            SirenScoreOptions.Fill(options, cancelling.Value, &native);
            NativeResult result = default;
            result.StructSize = (uint)sizeof(NativeResult);
            NativeError error;
            Failure.Prepare(&error);
            Failure.Check(Native.Api.Score(held.Value, input, &native, &result, &error), &error, cancellation);
            return new SirenResult(result);
        }

        /// <summary>Scores inputs together.</summary>
        /// <param name="inputs">The inputs.</param>
        /// <param name="options">How; null is the defaults.</param>
        /// <param name="cancellation">Ends the call inside the library.</param>
        /// <returns>For each input its result, or the failure that left it without one.</returns>
        /// <exception cref="SirenException">The call failed as a whole, and there is no result.</exception>
        /// <exception cref="OperationCanceledException"><paramref name="cancellation"/> was cancelled.</exception>
        public IReadOnlyList<SirenOutcome> ScoreBatch(
            IReadOnlyList<SirenInput> inputs, SirenScoreOptions? options = null, CancellationToken cancellation = default)
        {
            int count = (inputs ?? throw new ArgumentNullException(nameof(inputs))).Count;
            NativeInput[] natives = ArrayPool<NativeInput>.Shared.Rent(Math.Max(count, 1));
            NativeResult[] results = ArrayPool<NativeResult>.Shared.Rent(Math.Max(count, 1));
            NativeError[] errors = ArrayPool<NativeError>.Shared.Rent(Math.Max(count, 1));
            var texts = new Texts(Characters(inputs));
            try
            {
                fixed (NativeInput* native = natives)
                fixed (NativeResult* result = results)
                fixed (NativeError* failed = errors)
                {
                    for (int i = 0; i < count; i++)
                    {
                        texts.Add(inputs[i], native + i);
                        result[i] = default;
                        result[i].StructSize = (uint)sizeof(NativeResult);
                        Failure.Prepare(failed + i);
                    }
                    using var held = new Held(handle);
                    using var cancelling = new Cancelling(cancellation);
                    NativeScoreOptions how;
                    SirenScoreOptions.Fill(options, cancelling.Value, &how);
                    NativeError error;
                    Failure.Prepare(&error);
                    Failure.Check(Native.Api.ScoreBatch(held.Value, native, (nuint)count, &how, result, failed, &error), &error, cancellation);
                    var outcomes = new SirenOutcome[count];
                    for (int i = 0; i < count; i++)
                    {
                        outcomes[i] = Callbacks.Outcome(result + i, failed + i, cancellation);
                    }
                    return outcomes;
                }
            }
            finally
            {
                texts.Dispose();
                ArrayPool<NativeInput>.Shared.Return(natives);
                ArrayPool<NativeResult>.Shared.Return(results);
                ArrayPool<NativeError>.Shared.Return(errors);
            }
        }

        /// <summary>Scores texts together.</summary>
        /// <inheritdoc cref="ScoreBatch(IReadOnlyList{SirenInput}, SirenScoreOptions?, CancellationToken)"/>
        public IReadOnlyList<SirenOutcome> ScoreBatch(
            IReadOnlyList<string> inputs, SirenScoreOptions? options = null, CancellationToken cancellation = default) =>
            ScoreBatch(Inputs(inputs), options, cancellation);

        private static SirenInput[] Inputs(IReadOnlyList<string> texts)
        {
            var inputs = new SirenInput[(texts ?? throw new ArgumentNullException(nameof(texts))).Count];
            for (int i = 0; i < inputs.Length; i++)
            {
                inputs[i] = texts[i];
            }
            return inputs;
        }

        private static long Characters(IReadOnlyList<SirenInput> inputs)
        {
            long characters = 0;
            for (int i = 0; i < inputs.Count; i++)
            {
                characters += Texts.Characters(inputs[i]);
            }
            return characters;
        }

        /// <summary>Opens a stream: a text that is scored while it grows.</summary>
        /// <param name="options">What it scores; null is the defaults, and no prompt.</param>
        /// <exception cref="SirenException">It cannot be opened.</exception>
        public SirenStream NewStream(SirenStreamOptions? options = null)
        {
            options ??= new SirenStreamOptions();
            var texts = new Texts(Texts.Characters(options.Prompt));
            try
            {
                NativeStreamOptions native = default;
                native.StructSize = (uint)sizeof(NativeStreamOptions);
                native.HasThreshold = options.Threshold.HasValue ? 1u : 0;
                native.Threshold = options.Threshold.GetValueOrDefault();
                native.Prompt = texts.Add(options.Prompt);
                native.Hysteresis = Number.Count(options.Hysteresis, nameof(options.Hysteresis));
                if (options.Windows is SirenWindows windows)
                {
                    native.Windows = 1;
                    native.WindowTokens = Number.Count(windows.Tokens, nameof(windows.Tokens));
                    native.WindowStride = Number.Count(windows.Stride, nameof(windows.Stride));
                }
                using var held = new Held(handle);
                IntPtr stream;
                NativeError error;
                Failure.Prepare(&error);
                Failure.Check(Native.Api.StreamNew(held.Value, &native, &stream, &error), &error);
                return new SirenStream(new StreamHandle(stream));
            }
            finally
            {
                texts.Dispose();
            }
        }
    }
}
