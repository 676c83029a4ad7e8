// Guards an answer while it is written: reads it on stdin, prints what may be shown, stops at the crossing.
//
//   ChatGuard "the prompt" [--on-failure block|flag|pass] < answer
//
// A real program has the tokens of its chat model where this one has stdin.
using System;
using System.Collections.Generic;
using System.IO;
using System.Threading.Tasks;
using Siren;
using Siren.Examples;

internal static class Program
{
    private static async Task<int> Main(string[] arguments)
    {
        var options = new SirenGuardingOptions { Timeout = TimeSpan.FromSeconds(5) };
        for (int i = 0; i < arguments.Length; i++)
        {
            if (arguments[i] == "--on-failure" && i + 1 < arguments.Length
                && Enum.TryParse(arguments[++i], ignoreCase: true, out SirenOnFailure policy))
            {
                options.OnFailure = policy;
            }
            else
            {
                options.Prompt = arguments[i];
            }
        }
        // Replace() takes another guard at any time: answers that stream go on with the one they began with.
        using var current = new CurrentGuard(await SirenGuard.OpenAsync());
        try
        {
            await foreach (SirenGuardedText piece in current.GuardAsync(Words(Console.In), options))
            {
                Console.Write(piece.Text);
                if (piece.IsStopped)
                {
                    Console.WriteLine("\nstopped: harmful");
                    return 0;
                }
            }
            Console.WriteLine("\nall of it");
            return 0;
        }
        catch (SirenException e)
        {
            Console.WriteLine("\nstopped: could not be judged: " + e.Message);
            return 1;
        }
    }

    private static async IAsyncEnumerable<string> Words(TextReader reader)
    {
        var chunk = new char[16];
        for (int read; (read = await reader.ReadAsync(chunk, 0, chunk.Length)) > 0;)
        {
            yield return new string(chunk, 0, read);
        }
    }
}
