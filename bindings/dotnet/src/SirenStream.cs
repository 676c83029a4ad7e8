using System;
using System.Buffers;
using System.Threading;
using System.Threading.Tasks;

namespace Siren
{
    /// <summary>
    /// A growing text on a guard, after an optional prompt, scored at the cost of what is new. One thread
    /// at a time: else <see cref="SirenStatus.InUse"/>. It outlives its guard.
    /// </summary>
    public sealed unsafe partial class SirenStream : IGrowing
    {
        private readonly StreamHandle handle;

        // Half of a surrogate pair, whose other half the next string may begin with.
        private char carried;

        internal SirenStream(StreamHandle handle, char carried = '\0')
        {
            this.handle = handle;
            this.carried = carried;
        }

        /// <summary>Frees the stream. What is not disposed is freed as garbage.</summary>
        public void Dispose() => handle.Dispose();

        /// <summary>Adds text, which may split a surrogate pair, and scores all of the stream.</summary>
        /// <param name="text">What is new.</param>
        /// <param name="options">How; null is the defaults.</param>
        /// <param name="cancellation">Ends the call inside the library.</param>
        /// <returns>What all of the stream scores.</returns>
        /// <exception cref="SirenException">It failed, and the stream is as it was before.</exception>
        /// <exception cref="OperationCanceledException"><paramref name="cancellation"/> was cancelled; the stream is as it was before.</exception>
        public SirenPushResult Push(string text, SirenPushOptions? options = null, CancellationToken cancellation = default)
        {
            byte[] bytes = Bytes(text, out int length, out char rest);
            try
            {
                fixed (byte* start = bytes)
                {
                    SirenPushResult result = Push(start, length, finish: false, options, cancellation);
                    carried = rest;
                    return result;
                }
            }
            finally
            {
                ArrayPool<byte>.Shared.Return(bytes);
            }
        }

        /// <summary>Adds UTF-8 bytes, which are not copied and may split a character, and scores all of the stream.</summary>
        /// <inheritdoc cref="Push(string, SirenPushOptions?, CancellationToken)"/>
        public SirenPushResult Push(ReadOnlySpan<byte> utf8, SirenPushOptions? options = null, CancellationToken cancellation = default)
        {
            CheckCarried();
            fixed (byte* start = utf8)
            {
                return Push(start, utf8.Length, finish: false, options, cancellation);
            }
        }

        /// <summary>Says that nothing more comes: the last result, in which every byte is cleared that can be.</summary>
        /// <inheritdoc cref="Push(string, SirenPushOptions?, CancellationToken)"/>
        public SirenPushResult Finish(SirenPushOptions? options = null, CancellationToken cancellation = default)
        {
            CheckCarried();
            return Push(null, 0, finish: true, options, cancellation);
        }

        /// <summary>Adds UTF-8 bytes without blocking a thread; they are copied before the call returns.</summary>
        /// <inheritdoc cref="PushAsync(string, SirenPushOptions?, CancellationToken)"/>
        public Task<SirenPushResult> PushAsync(ReadOnlyMemory<byte> utf8, SirenPushOptions? options = null, CancellationToken cancellation = default)
        {
            CheckCarried();
            return Start(utf8.Span, finish: false, options, cancellation);
        }

        /// <summary>Finishes without blocking a thread. The stream is in use until the task has ended.</summary>
        /// <inheritdoc cref="Finish"/>
        public Task<SirenPushResult> FinishAsync(SirenPushOptions? options = null, CancellationToken cancellation = default)
        {
            CheckCarried();
            return Start(default, finish: true, options, cancellation);
        }

        /// <summary>Forgets what was pushed, and keeps the prompt and the options.</summary>
        /// <exception cref="SirenException">It failed.</exception>
        public void Reset()
        {
            using var held = new Held(handle);
            NativeError error;
            Failure.Prepare(&error);
            Failure.Check(Native.Api.StreamReset(held.Value, &error), &error);
            carried = '\0';
        }

        /// <summary>Makes a second stream in the same state: what has run is shared, not run again.</summary>
        /// <exception cref="SirenException">It failed.</exception>
        public SirenStream Fork()
        {
            using var held = new Held(handle);
            IntPtr forked;
            NativeError error;
            Failure.Prepare(&error);
            Failure.Check(Native.Api.StreamFork(held.Value, &forked, &error), &error);
            return new SirenStream(new StreamHandle(forked), carried);
        }

        private SirenPushResult Push(byte* data, int length, bool finish, SirenPushOptions? options, CancellationToken cancellation)
        {
            using var held = new Held(handle);
            using var cancelling = new Cancelling(cancellation);
            double[] scores = Scores(options);
            fixed (double* tokenScores = scores)
            {
                NativePushOptions native;
                Fill(options, cancelling.Value, tokenScores, scores.Length, &native);
                NativePushResult result = default;
                result.StructSize = (uint)sizeof(NativePushResult);
                NativeError error;
                Failure.Prepare(&error);
                int status = finish
                    ? Native.Api.StreamFinish(held.Value, &native, &result, &error)
                    : Native.Api.StreamPush(held.Value, data, (nuint)length, &native, &result, &error);
                Failure.Check(status, &error, cancellation);
                return new SirenPushResult(result, scores);
            }
        }

        private Task<SirenPushResult> Start(ReadOnlySpan<byte> utf8, bool finish, SirenPushOptions? options, CancellationToken cancellation)
        {
            var pending = new Pending<SirenPushResult>(cancellation);
            try
            {
                using var held = new Held(handle);
                fixed (byte* start = utf8)
                {
                    double[] scores = Scores(options);
                    NativePushOptions native;
                    Fill(options, pending.Cancel(), (double*)pending.Pin(scores), scores.Length, &native);
                    NativeError error;
                    Failure.Prepare(&error);
                    int status = finish
                        ? Native.Api.StreamFinishAsync(held.Value, &native, Callbacks.PushPointer, pending.Begin(), &error)
                        : Native.Api.StreamPushAsync(held.Value, start, (nuint)utf8.Length, &native, Callbacks.PushPointer, pending.Begin(), &error);
                    Failure.Check(status, &error, cancellation);
                }
            }
            catch (Exception e)
            {
                pending.Refused();
                pending.Fail(e);
            }
            return pending.Run();
        }

        private static double[] Scores(SirenPushOptions? options)
        {
            int count = options?.TokenScores ?? 0;
            Number.Count(count, nameof(SirenPushOptions.TokenScores));
            return count == 0 ? Array.Empty<double>() : new double[count];
        }

        private static void Fill(SirenPushOptions? options, IntPtr cancel, double* scores, int capacity, NativePushOptions* native)
        {
            *native = default;
            native->StructSize = (uint)sizeof(NativePushOptions);
            native->Wait = options != null && options.Wait ? 1u : 0;
            native->Cancel = cancel;
            native->TimeoutMs = Number.Milliseconds(options?.Timeout);
            native->TokenScores = capacity == 0 ? null : scores;
            native->TokenScoresCapacity = (nuint)capacity;
        }

        /// <summary>A string's bytes in a rented array, after what the last one left, without what it leaves.</summary>
        private byte[] Bytes(string text, out int length, out char rest)
        {
            if (text == null)
            {
                throw new ArgumentNullException(nameof(text));
            }
            if (carried != '\0')
            {
                text = carried + text;
            }
            int characters = text.Length;
            rest = '\0';
            if (characters > 0 && char.IsHighSurrogate(text[characters - 1]))
            {
                rest = text[--characters];
            }
            byte[] bytes = ArrayPool<byte>.Shared.Rent(Utf8.Room(characters) + 1);
            fixed (char* from = text)
            fixed (byte* to = bytes)
            {
                length = Utf8.Write(from, characters, to);
            }
            return bytes;
        }

        private void CheckCarried()
        {
            if (carried != '\0')
            {
                throw new SirenException(SirenStatus.InvalidUtf8, "invalid_utf8: the last string that was pushed ends with half of a surrogate pair");
            }
        }
    }

    // No await in an unsafe context.
    public sealed partial class SirenStream
    {
        /// <summary>Adds text without blocking a thread. The stream is in use until the task has ended.</summary>
        /// <inheritdoc cref="Push(string, SirenPushOptions?, CancellationToken)"/>
        public async Task<SirenPushResult> PushAsync(string text, SirenPushOptions? options = null, CancellationToken cancellation = default)
        {
            byte[] bytes = Bytes(text, out int length, out char rest);
            Task<SirenPushResult> pushing;
            try
            {
                pushing = Start(bytes.AsSpan(0, length), finish: false, options, cancellation);
            }
            finally
            {
                ArrayPool<byte>.Shared.Return(bytes);
            }
            SirenPushResult result = await pushing.ConfigureAwait(false);
            carried = rest;
            return result;
        }
    }
}
