using System;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Tasks;

namespace Siren
{
    // Asynchronous calls are the library's own: no thread waits for them.
    public sealed partial class SirenGuard
    {
        /// <summary>
        /// Opens a guard on a thread of the pool. When <paramref name="cancellation"/> ends it, it returns
        /// at once; a file that is being read or fetched is so to its end, and the guard is then freed.
        /// </summary>
        /// <inheritdoc cref="Open"/>
        public static async Task<SirenGuard> OpenAsync(
            string? model = null, SirenOpenOptions? options = null, CancellationToken cancellation = default)
        {
            cancellation.ThrowIfCancellationRequested();
            Task<SirenGuard> opening = Task.Run(() => Open(model, options));
            if (!cancellation.CanBeCanceled)
            {
                return await opening.ConfigureAwait(false);
            }
            var ended = new TaskCompletionSource<bool>(TaskCreationOptions.RunContinuationsAsynchronously);
            using (cancellation.Register(static state => ((TaskCompletionSource<bool>)state!).TrySetResult(true), ended))
            {
                if (await Task.WhenAny(opening, ended.Task).ConfigureAwait(false) != opening)
                {
                    _ = opening.ContinueWith(
                        static opened =>
                        {
                            if (opened.Status == TaskStatus.RanToCompletion)
                            {
                                opened.Result.Dispose();
                            }
                            else
                            {
                                _ = opened.Exception; // Looked at: nobody else will.
                            }
                        },
                        CancellationToken.None, TaskContinuationOptions.ExecuteSynchronously, TaskScheduler.Default);
                    cancellation.ThrowIfCancellationRequested();
                }
            }
            return await opening.ConfigureAwait(false);
        }

        /// <summary>Scores one text without blocking a thread.</summary>
        /// <param name="text">The text, which is copied before the call returns.</param>
        /// <param name="options">How; null is the defaults.</param>
        /// <param name="cancellation">Ends the call inside the library.</param>
        /// <returns>A task of what it scored. It fails as <see cref="Score(string, SirenScoreOptions?, CancellationToken)"/> does.</returns>
        public Task<SirenResult> ScoreAsync(string text, SirenScoreOptions? options = null, CancellationToken cancellation = default) =>
            ScoreAsync(new SirenInput(text ?? throw new ArgumentNullException(nameof(text))), options, cancellation);

        /// <summary>Scores one text without blocking a thread.</summary>
        /// <inheritdoc cref="ScoreAsync(string, SirenScoreOptions?, CancellationToken)"/>
        public Task<SirenResult> ScoreAsync(string text, CancellationToken cancellation) => ScoreAsync(text, null, cancellation);

        /// <summary>Scores one input without blocking a thread.</summary>
        /// <inheritdoc cref="ScoreAsync(string, SirenScoreOptions?, CancellationToken)"/>
        public unsafe Task<SirenResult> ScoreAsync(SirenInput input, SirenScoreOptions? options = null, CancellationToken cancellation = default)
        {
            var pending = new Pending<SirenResult>(cancellation);
            var texts = new Texts(Texts.Characters(input));
            try
            {
                using var held = new Held(handle);
                NativeInput native;
                texts.Add(input, &native);
                NativeScoreOptions how;
                SirenScoreOptions.Fill(options, pending.Cancel(), &how);
                NativeError error;
                Failure.Prepare(&error);
                Failure.Check(Native.Api.ScoreAsync(held.Value, &native, &how, Callbacks.ScorePointer, pending.Begin(), &error), &error, cancellation);
            }
            catch (Exception e)
            {
                pending.Refused();
                pending.Fail(e);
            }
            finally
            {
                texts.Dispose();
            }
            return pending.Run();
        }

        /// <summary>Scores inputs together without blocking a thread.</summary>
        /// <param name="inputs">The inputs, which are copied before the call returns.</param>
        /// <param name="options">How; null is the defaults.</param>
        /// <param name="cancellation">Ends the call inside the library.</param>
        /// <returns>A task of their results. It fails as <see cref="ScoreBatch(IReadOnlyList{SirenInput}, SirenScoreOptions?, CancellationToken)"/> does.</returns>
        public unsafe Task<IReadOnlyList<SirenOutcome>> ScoreBatchAsync(
            IReadOnlyList<SirenInput> inputs, SirenScoreOptions? options = null, CancellationToken cancellation = default)
        {
            var pending = new Pending<IReadOnlyList<SirenOutcome>>(cancellation);
            var texts = new Texts(Characters(inputs ?? throw new ArgumentNullException(nameof(inputs))));
            try
            {
                using var held = new Held(handle);
                // One more: of an empty array there is no pointer.
                var natives = new NativeInput[inputs.Count + 1];
                fixed (NativeInput* native = natives)
                {
                    for (int i = 0; i < inputs.Count; i++)
                    {
                        texts.Add(inputs[i], native + i);
                    }
                    NativeScoreOptions how;
                    SirenScoreOptions.Fill(options, pending.Cancel(), &how);
                    NativeError error;
                    Failure.Prepare(&error);
                    Failure.Check(
                        Native.Api.ScoreBatchAsync(held.Value, native, (nuint)inputs.Count, &how, Callbacks.BatchPointer, pending.Begin(), &error),
                        &error, cancellation);
                }
            }
            catch (Exception e)
            {
                pending.Refused();
                pending.Fail(e);
            }
            finally
            {
                texts.Dispose();
            }
            return pending.Run();
        }

        /// <summary>Scores texts together without blocking a thread.</summary>
        /// <inheritdoc cref="ScoreBatchAsync(IReadOnlyList{SirenInput}, SirenScoreOptions?, CancellationToken)"/>
        public Task<IReadOnlyList<SirenOutcome>> ScoreBatchAsync(
            IReadOnlyList<string> inputs, SirenScoreOptions? options = null, CancellationToken cancellation = default) =>
            ScoreBatchAsync(Inputs(inputs), options, cancellation);
    }
}
