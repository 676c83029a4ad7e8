using System;
using System.Runtime.InteropServices;

namespace Siren
{
    /// <summary>A handle of the library's, freed when nobody has it any more.</summary>
    internal abstract class NativeHandle : SafeHandle
    {
        protected NativeHandle(IntPtr value) : base(IntPtr.Zero, ownsHandle: true) => SetHandle(value);

        public override bool IsInvalid => handle == IntPtr.Zero;
    }

    internal sealed unsafe class GuardHandle : NativeHandle
    {
        public GuardHandle(IntPtr value) : base(value) { }

        protected override bool ReleaseHandle() => Native.Api.Free(handle) == (int)SirenStatus.Ok;
    }

    internal sealed unsafe class StreamHandle : NativeHandle
    {
        public StreamHandle(IntPtr value) : base(value) { }

        protected override bool ReleaseHandle() => Native.Api.StreamFree(handle) == (int)SirenStatus.Ok;
    }

    internal sealed unsafe class CancelHandle : NativeHandle
    {
        private CancelHandle(IntPtr value) : base(value) { }

        public static CancelHandle New()
        {
            IntPtr token;
            NativeError error;
            Failure.Prepare(&error);
            Failure.Check(Native.Api.CancelTokenNew(&token, &error), &error);
            return new CancelHandle(token);
        }

        /// <summary>Never throws: it runs inside somebody's CancellationTokenSource.Cancel.</summary>
        public void Cancel()
        {
            // Of a token that was freed meanwhile the number names nothing.
            Native.Api.Cancel(handle, null);
        }

        protected override bool ReleaseHandle() => Native.Api.CancelTokenFree(handle) == (int)SirenStatus.Ok;
    }

    /// <summary>Keeps a handle from being freed while a call uses it.</summary>
    internal readonly ref struct Held
    {
        private readonly NativeHandle handle;

        public readonly IntPtr Value;

        /// <exception cref="ObjectDisposedException">The handle was freed.</exception>
        public Held(NativeHandle handle)
        {
            bool held = false;
            this.handle = handle;
            handle.DangerousAddRef(ref held);
            Value = handle.DangerousGetHandle();
        }

        public void Dispose() => handle.DangerousRelease();
    }

    /// <summary>How a CancellationToken ends a call inside the library.</summary>
    internal readonly struct Cancelling : IDisposable
    {
        private readonly CancelHandle? handle;
        private readonly System.Threading.CancellationTokenRegistration registration;

        public Cancelling(System.Threading.CancellationToken token)
        {
            handle = null;
            registration = default;
            if (token.CanBeCanceled)
            {
                token.ThrowIfCancellationRequested();
                handle = CancelHandle.New();
#if NET8_0_OR_GREATER
                registration = token.UnsafeRegister(static state => ((CancelHandle)state!).Cancel(), handle);
#else
                registration = token.Register(static state => ((CancelHandle)state!).Cancel(), handle);
#endif
            }
        }

        public IntPtr Value => handle == null ? IntPtr.Zero : handle.DangerousGetHandle();

        public void Dispose()
        {
            registration.Dispose();
            handle?.Dispose();
        }
    }
}
