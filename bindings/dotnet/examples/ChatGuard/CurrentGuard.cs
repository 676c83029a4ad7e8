using System;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Tasks;

namespace Siren.Examples
{
    /// <summary>
    /// The guard in use, which can be replaced while it is: by one with new weights, or after it was
    /// poisoned. Calls that run on the one before finish, and its streams go on to their end.
    /// </summary>
    public sealed class CurrentGuard : IDisposable
    {
        private SirenGuard guard;

        public CurrentGuard(SirenGuard guard) => this.guard = guard;

        /// <summary>Takes <paramref name="next"/> from now on, and frees the one before it.</summary>
        public void Replace(SirenGuard next) => Interlocked.Exchange(ref guard, next).Dispose();

        public T Use<T>(Func<SirenGuard, T> call)
        {
            while (true)
            {
                SirenGuard used = Volatile.Read(ref guard);
                try
                {
                    return call(used);
                }
                catch (ObjectDisposedException) when (used != Volatile.Read(ref guard))
                {
                    // It was replaced before the call began.
                }
            }
        }

        public async Task<T> UseAsync<T>(Func<SirenGuard, Task<T>> call)
        {
            while (true)
            {
                SirenGuard used = Volatile.Read(ref guard);
                try
                {
                    return await call(used).ConfigureAwait(false);
                }
                catch (ObjectDisposedException) when (used != Volatile.Read(ref guard))
                {
                    // It was replaced before the call began.
                }
            }
        }

        /// <summary>Guards an answer by the guard of the moment it begins.</summary>
        public IAsyncEnumerable<SirenGuardedText> GuardAsync(IAsyncEnumerable<string> answer, SirenGuardingOptions? options = null) =>
            Use(used => used.GuardAsync(answer, options));

        public void Dispose() => guard.Dispose();
    }
}
