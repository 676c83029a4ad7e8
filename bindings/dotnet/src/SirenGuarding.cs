using System;
using System.Collections.Generic;
using System.Runtime.CompilerServices;
using System.Threading;
using System.Threading.Tasks;

namespace Siren
{
    /// <summary>What becomes of an answer that crosses the threshold.</summary>
    public enum SirenOnHarmful
    {
        /// <summary>Text is held back until it is cleared, and the answer ends at the crossing.</summary>
        Stop,
        /// <summary>All text passes at once, and <see cref="SirenGuardedText.Result"/> says where it crossed.</summary>
        Flag,
    }

    /// <summary>
    /// What becomes of text that could not be judged: the guard was busy or is poisoned, a time limit
    /// passed, or anything else failed.
    /// </summary>
    public enum SirenOnFailure
    {
        /// <summary>The answer ends: the failure is thrown, and what was not cleared is not shown.</summary>
        Block,
        /// <summary>The text passes, with the failure in <see cref="SirenGuardedText.Failure"/>.</summary>
        Flag,
        /// <summary>The text passes as if it were cleared.</summary>
        Pass,
    }

    /// <summary>How to guard an answer that is being written. What is not set holds back, stops and blocks.</summary>
    public sealed class SirenGuardingOptions
    {
        /// <summary>What the answer is to, or absent.</summary>
        public SirenText Prompt { get; set; }
        /// <summary>From 0 to 1; null is the guard's own.</summary>
        public double? Threshold { get; set; }
        /// <summary>Tokens in a row at or above the threshold before they count as a crossing.</summary>
        public long Hysteresis { get; set; }
        /// <summary>
        /// Windows by which an answer is read to its end, however long it is. With null, what is past the
        /// guard's longest text cannot be judged.
        /// </summary>
        public SirenWindows? Windows { get; set; } = new SirenWindows();
        /// <summary>Time limit of each push; null is none.</summary>
        public TimeSpan? Timeout { get; set; }
        /// <summary>Waits for a place when the guard's queue is full, instead of failing.</summary>
        public bool Wait { get; set; }
        /// <summary>What becomes of an answer that crosses.</summary>
        public SirenOnHarmful OnHarmful { get; set; }
        /// <summary>What becomes of text that could not be judged.</summary>
        public SirenOnFailure OnFailure { get; set; }
    }

    /// <summary>A piece of an answer that may be shown.</summary>
    public sealed class SirenGuardedText
    {
        internal SirenGuardedText(string text, SirenPushResult? result, SirenException? failure, bool isStopped)
        {
            Text = text;
            Result = result;
            Failure = failure;
            IsStopped = isStopped;
        }

        /// <summary>What may be shown after the pieces before it. It may be empty.</summary>
        public string Text { get; }
        /// <summary>What all of the answer scores so far; null where that could not be judged.</summary>
        public SirenPushResult? Result { get; }
        /// <summary>Why this piece was not judged, with <see cref="SirenOnFailure.Flag"/>; else null.</summary>
        public SirenException? Failure { get; }
        /// <summary>The answer crossed and ends here: this is the last piece.</summary>
        public bool IsStopped { get; }
    }

    /// <summary>What guarding needs of a stream.</summary>
    internal interface IGrowing : IDisposable
    {
        Task<SirenPushResult> PushAsync(ReadOnlyMemory<byte> utf8, SirenPushOptions? options, CancellationToken cancellation);

        Task<SirenPushResult> FinishAsync(SirenPushOptions? options, CancellationToken cancellation);
    }

    public sealed partial class SirenGuard
    {
        /// <summary>
        /// Guards an answer while a model writes it: takes its pieces, and gives those parts that may be
        /// shown, each with the score of the whole so far.
        /// </summary>
        /// <param name="answer">The pieces, which may split a surrogate pair.</param>
        /// <param name="options">What a harmful answer and a failure mean; null holds back, stops and blocks.</param>
        /// <param name="cancellation">Ends the enumeration, and a push that runs.</param>
        /// <returns>
        /// Pieces that may be shown. At a crossing the last one has <see cref="SirenGuardedText.IsStopped"/>,
        /// and the enumerator of <paramref name="answer"/> is disposed.
        /// </returns>
        /// <exception cref="SirenException">Text could not be judged, and the options do not let it pass.</exception>
        /// <exception cref="OperationCanceledException"><paramref name="cancellation"/> was cancelled.</exception>
        /// <exception cref="ObjectDisposedException">The guard was disposed before this call, which itself throws it.</exception>
        public IAsyncEnumerable<SirenGuardedText> GuardAsync(
            IAsyncEnumerable<string> answer, SirenGuardingOptions? options = null, CancellationToken cancellation = default)
        {
            if (answer == null)
            {
                throw new ArgumentNullException(nameof(answer));
            }
            options ??= new SirenGuardingOptions();
            var streaming = new SirenStreamOptions
            {
                Prompt = options.Prompt,
                Threshold = options.Threshold,
                Hysteresis = options.Hysteresis,
                Windows = options.Windows,
            };
            // Opened here: a guard may be disposed, to be replaced, before the enumeration begins.
            SirenStream? opened = null;
            try
            {
                opened = NewStream(streaming);
            }
            catch (SirenException)
            {
                // It is tried again there, under the options.
            }
            return Guarding.Run(answer, () => Interlocked.Exchange(ref opened, null) ?? NewStream(streaming), options, cancellation);
        }
    }

    /// <summary>An answer that is being guarded.</summary>
    internal sealed class Guarding
    {
        private readonly SirenGuardingOptions options;
        private readonly SirenPushOptions push;
        // Bytes that were not shown (from `shown` on), or that the stream has not taken (from `pushed` on);
        // before them `dropped` others were both.
        private byte[] held = new byte[256];
        private int count, pushed, shown;
        private long dropped;
        private char carried;

        private Guarding(SirenGuardingOptions options)
        {
            this.options = options;
            push = new SirenPushOptions { Timeout = options.Timeout, Wait = options.Wait };
        }

        public static async IAsyncEnumerable<SirenGuardedText> Run(
            IAsyncEnumerable<string> answer, Func<IGrowing> open, SirenGuardingOptions options, [EnumeratorCancellation] CancellationToken cancellation)
        {
            var guarding = new Guarding(options);
            IGrowing? stream = null;
            try
            {
                await foreach (string piece in answer.WithCancellation(cancellation).ConfigureAwait(false))
                {
                    guarding.Append(piece, last: false);
                    SirenException? unopened = Open(ref stream, open);
                    SirenGuardedText given = await guarding.Judge(stream, unopened, last: false, cancellation).ConfigureAwait(false);
                    if (given.Text.Length > 0 || given.IsStopped || given.Failure != null)
                    {
                        yield return given;
                    }
                    if (given.IsStopped)
                    {
                        yield break;
                    }
                }
                guarding.Append("", last: true);
                SirenException? unopenedLast = Open(ref stream, open);
                yield return await guarding.Judge(stream, unopenedLast, last: true, cancellation).ConfigureAwait(false);
            }
            finally
            {
                stream?.Dispose();
            }
        }

        private static SirenException? Open(ref IGrowing? stream, Func<IGrowing> open)
        {
            try
            {
                stream ??= open();
                return null;
            }
            catch (SirenException e)
            {
                return e;
            }
        }

        private unsafe void Append(string piece, bool last)
        {
            string text = carried == '\0' ? piece : carried + piece;
            int characters = text.Length;
            carried = '\0';
            if (!last && characters > 0 && char.IsHighSurrogate(text[characters - 1]))
            {
                carried = text[--characters];
            }
            int room = Utf8.Room(characters) + 1;
            if (held.Length - count < room)
            {
                Array.Resize(ref held, Math.Max(held.Length * 2, checked(count + room)));
            }
            fixed (char* from = text)
            fixed (byte* to = &held[count])
            {
                count += Utf8.Write(from, characters, to);
            }
        }

        /// <summary>Hands the stream what it has not taken, and gives what may be shown.</summary>
        private async Task<SirenGuardedText> Judge(IGrowing? stream, SirenException? unopened, bool last, CancellationToken cancellation)
        {
            SirenPushResult? result = null;
            SirenException? failure = unopened;
            int show = count;
            bool stop = false;
            if (stream != null)
            {
                try
                {
                    result = await stream.PushAsync(new ReadOnlyMemory<byte>(held, pushed, count - pushed), push, cancellation).ConfigureAwait(false);
                    pushed = count;
                    if (last && result.Crossing == null)
                    {
                        result = await stream.FinishAsync(push, cancellation).ConfigureAwait(false);
                    }
                }
                catch (SirenException e)
                {
                    failure = e;
                    result = null;
                }
            }
            if (result != null)
            {
                if (options.OnHarmful == SirenOnHarmful.Stop)
                {
                    show = (int)Math.Max(shown, Math.Min(count, result.ClearedBytes - dropped));
                    stop = result.Crossing != null;
                    if (last && !stop && show < count)
                    {
                        failure = new SirenException(
                            SirenStatus.LimitExceeded, $"limit_exceeded: the last {count - show} bytes of the answer could not be judged, as it is longer than the guard reads without windows");
                        show = count;
                    }
                }
            }
            if (failure != null && options.OnFailure == SirenOnFailure.Block)
            {
                throw failure;
            }
            string text = Utf8.Lenient.GetString(held, shown, show - shown);
            shown = show;
            int done = Math.Min(shown, pushed);
            Array.Copy(held, done, held, 0, count - done);
            count -= done;
            shown -= done;
            pushed -= done;
            dropped += done;
            return new SirenGuardedText(text, result, options.OnFailure == SirenOnFailure.Flag ? failure : null, stop);
        }
    }
}
