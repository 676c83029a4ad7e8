using System;
using System.Runtime.InteropServices;

namespace Siren
{
    /// <summary>How much a line of the library's log matters; each level takes in those before it.</summary>
    public enum SirenLogLevel
    {
        /// <summary>Errors.</summary>
        Error = 1,
        /// <summary>Warnings.</summary>
        Warning = 2,
        /// <summary>Information.</summary>
        Information = 3,
        /// <summary>Debugging.</summary>
        Debug = 4,
        /// <summary>Tracing.</summary>
        Trace = 5,
    }

    /// <summary>The library that is loaded, for the whole process.</summary>
    public static unsafe class SirenLibrary
    {
        private static readonly object Logging = new object();

        /// <summary>The library's version, such as <c>0.1.0</c>.</summary>
        /// <exception cref="DllNotFoundException">The library is not found: the message says where it was looked for.</exception>
        public static string Version => Text(Native.Api.Version());

        /// <summary>The library's ABI: its major version times 65,536, plus its minor one.</summary>
        public static int AbiVersion => (int)Native.Api.AbiVersion();

        /// <summary>The file that was loaded, or the name by which the system found it.</summary>
        public static string Path => Native.Api.Path;

        /// <summary>The name of a status, such as <c>busy</c>; <c>unknown</c> for a number that is none.</summary>
        public static string Name(SirenStatus status) => Text(Native.Api.StatusName((int)status));

        /// <summary>
        /// Sends the library's log lines up to <paramref name="level"/> to <paramref name="log"/>; null ends
        /// that. There is one for the whole process. It is called from any thread, several at once, must not
        /// call into the library, and what it throws is dropped.
        /// </summary>
        /// <exception cref="SirenException">The level is none.</exception>
        public static void SetLog(SirenLogLevel level, Action<SirenLogLevel, string>? log)
        {
            Native api = Native.Api;
            lock (Logging)
            {
                Action<SirenLogLevel, string>? before = Callbacks.Log;
                // Lines may arrive before the call returns.
                Callbacks.Log = log;
                NativeError error;
                Failure.Prepare(&error);
                int status = api.LogSet(log == null ? IntPtr.Zero : Callbacks.LogPointer, IntPtr.Zero, (int)level, &error);
                if (status != (int)SirenStatus.Ok)
                {
                    Callbacks.Log = before;
                    throw Failure.Of(status, &error);
                }
            }
        }

        private static string Text(byte* text)
        {
            int length = 0;
            while (text[length] != 0)
            {
                length++;
            }
            return Utf8.Lenient.GetString(text, length);
        }
    }
}
