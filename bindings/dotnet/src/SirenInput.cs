using System;
using System.Buffers;
using System.Runtime.InteropServices;
using System.Text;

namespace Siren
{
    /// <summary>
    /// A text: a string, UTF-8 bytes, or absent, which is its default and another thing than empty.
    /// Bytes go to the library as they lie in memory, and must not change while a call runs.
    /// </summary>
    public readonly struct SirenText
    {
        private readonly string? text;
        private readonly ReadOnlyMemory<byte> utf8;
        private readonly bool isUtf8;

        /// <summary>A string; null is absent.</summary>
        public SirenText(string? text)
        {
            this.text = text;
            utf8 = default;
            isUtf8 = false;
        }

        /// <summary>UTF-8 bytes.</summary>
        public SirenText(ReadOnlyMemory<byte> utf8)
        {
            text = null;
            this.utf8 = utf8;
            isUtf8 = true;
        }

        /// <summary>A string; null is absent.</summary>
        public static implicit operator SirenText(string? text) => new SirenText(text);

        /// <summary>UTF-8 bytes.</summary>
        public static implicit operator SirenText(ReadOnlyMemory<byte> utf8) => new SirenText(utf8);

        /// <summary>UTF-8 bytes; null is absent.</summary>
        public static implicit operator SirenText(byte[]? utf8) => utf8 == null ? default : new SirenText(utf8);

        /// <summary>There is no text, which is another thing than an empty one.</summary>
        public bool IsAbsent => !isUtf8 && text == null;

        internal bool IsBytes => isUtf8;
        internal string? Characters => text;
        internal ReadOnlyMemory<byte> Bytes => utf8;
    }

    /// <summary>What is scored: one text alone, or a prompt and/or a response.</summary>
    public readonly struct SirenInput
    {
        internal readonly SirenText Text, Prompt, Response;

        /// <summary>One text.</summary>
        public SirenInput(SirenText text)
        {
            Text = text;
            Prompt = Response = default;
        }

        internal SirenInput(SirenText text, SirenText prompt, SirenText response)
        {
            Text = text;
            Prompt = prompt;
            Response = response;
        }

        /// <summary>What a model was asked and what it answered, joined with one newline; either may be absent.</summary>
        public static SirenInput Exchange(SirenText prompt, SirenText response) => new SirenInput(default, prompt, response);

        /// <summary>One text.</summary>
        public static implicit operator SirenInput(string text) => new SirenInput(new SirenText(text));
    }

    internal static unsafe class Utf8
    {
        public static readonly Encoding Lenient = new UTF8Encoding(false, false);

        /// <summary>Room for any string of so many characters.</summary>
        public static int Room(int characters) => checked(characters * 3);

        /// <summary>
        /// Writes a string of at most <c>Room</c> bytes. Half of a surrogate pair that stands alone becomes
        /// bytes that are not UTF-8, so that the library refuses them, where an Encoding would score another
        /// text than the one that was given.
        /// </summary>
        public static int Write(char* text, int length, byte* to)
        {
            int written = 0, from = 0;
            for (int i = 0; i < length; i++)
            {
                if (!char.IsSurrogate(text[i]))
                {
                    continue;
                }
                if (char.IsHighSurrogate(text[i]) && i + 1 < length && char.IsLowSurrogate(text[i + 1]))
                {
                    i++;
                    continue;
                }
                written += Encode(text + from, i - from, to + written);
                to[written++] = (byte)(0xE0 | (text[i] >> 12));
                to[written++] = (byte)(0x80 | ((text[i] >> 6) & 0x3F));
                to[written++] = (byte)(0x80 | (text[i] & 0x3F));
                from = i + 1;
            }
            return written + Encode(text + from, length - from, to + written);
        }

        private static int Encode(char* text, int length, byte* to) =>
            length == 0 ? 0 : Lenient.GetBytes(text, length, to, Room(length));
    }

    /// <summary>
    /// Texts of a call in the library's form: strings as UTF-8 in one rented array, bytes pinned where
    /// they lie.
    /// </summary>
    internal unsafe ref struct Texts
    {
        private readonly byte[] rented;
        private readonly GCHandle pinned;
        private readonly byte* start;
        private int used;
        private MemoryHandle[]? memory;
        private int memories;

        /// <summary>Makes room for strings of <paramref name="characters"/> in all.</summary>
        public Texts(long characters)
        {
            rented = ArrayPool<byte>.Shared.Rent(checked((int)(characters * 3) + 1));
            pinned = GCHandle.Alloc(rented, GCHandleType.Pinned);
            start = (byte*)pinned.AddrOfPinnedObject();
            used = 0;
            memory = null;
            memories = 0;
        }

        public static long Characters(in SirenInput input) =>
            Characters(input.Text) + Characters(input.Prompt) + Characters(input.Response);

        public static long Characters(in SirenText text) => text.Characters?.Length ?? 0;

        public NativeText Add(in SirenText text)
        {
            var native = default(NativeText);
            if (text.IsBytes)
            {
                native.Length = (nuint)text.Bytes.Length;
                native.Data = text.Bytes.IsEmpty ? start : Pin(text.Bytes);
            }
            else if (text.Characters is string characters)
            {
                fixed (char* c = characters)
                {
                    native.Data = start + used;
                    native.Length = (nuint)Utf8.Write(c, characters.Length, native.Data);
                }
                used += (int)native.Length;
            }
            return native;
        }

        /// <summary>A text of which an empty one is the default too.</summary>
        public NativeText AddGiven(string? text) => string.IsNullOrEmpty(text) ? default : Add(text);

        public void Add(in SirenInput input, NativeInput* native)
        {
            *native = default;
            native->StructSize = (uint)sizeof(NativeInput);
            native->Text = Add(input.Text);
            native->Prompt = Add(input.Prompt);
            native->Response = Add(input.Response);
        }

        private byte* Pin(ReadOnlyMemory<byte> bytes)
        {
            if (memory == null || memories == memory.Length)
            {
                MemoryHandle[] grown = ArrayPool<MemoryHandle>.Shared.Rent(Math.Max(4, memories * 2));
                if (memory != null)
                {
                    Array.Copy(memory, grown, memories);
                    ArrayPool<MemoryHandle>.Shared.Return(memory, clearArray: true);
                }
                memory = grown;
            }
            memory[memories] = bytes.Pin();
            return (byte*)memory[memories++].Pointer;
        }

        public void Dispose()
        {
            for (int i = 0; i < memories; i++)
            {
                memory![i].Dispose();
            }
            if (memory != null)
            {
                ArrayPool<MemoryHandle>.Shared.Return(memory, clearArray: true);
            }
            pinned.Free();
            ArrayPool<byte>.Shared.Return(rented);
        }
    }
}
