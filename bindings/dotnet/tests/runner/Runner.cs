// Runs the tests of this assembly as xunit does: a new object of the class for each, its fixtures made once.
//
//   Siren.Tests [PART OF A NAME]
using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Linq;
using System.Reflection;
using System.Threading.Tasks;
using Xunit;

public static class Runner
{
    public static int Main(string[] arguments)
    {
        string part = arguments.Length > 0 ? arguments[0] : "";
        int passed = 0, failed = 0;
        foreach (Type type in typeof(Runner).Assembly.GetTypes().Where(t => t.IsPublic && !t.IsAbstract))
        {
            var fixtures = new Dictionary<Type, object>();
            foreach (MethodInfo method in type.GetMethods())
            {
                if (method.GetCustomAttribute<FactAttribute>() == null || !(type.Name + "." + method.Name).Contains(part))
                {
                    continue;
                }
                object[][] cases = method.GetCustomAttributes<InlineDataAttribute>().Select(data => data.Data).ToArray();
                foreach (object[] data in cases.Length > 0 ? cases : new[] { Array.Empty<object>() })
                {
                    string name = $"{type.Name}.{method.Name}({string.Join(", ", data)})";
                    var watch = Stopwatch.StartNew();
                    try
                    {
                        Run(type, method, data, fixtures);
                        passed++;
                        if (watch.ElapsedMilliseconds > 2000)
                        {
                            Console.WriteLine($"slow: {name}: {watch.ElapsedMilliseconds} ms");
                        }
                    }
                    catch (Exception e)
                    {
                        failed++;
                        Console.WriteLine($"FAILED: {name}: {(e is TargetInvocationException ? e.InnerException : e)}");
                    }
                }
            }
            foreach (IDisposable fixture in fixtures.Values.OfType<IDisposable>())
            {
                fixture.Dispose();
            }
        }
        Console.WriteLine($"{passed} passed, {failed} failed");
        return failed == 0 && passed > 0 ? 0 : 1;
    }

    private static void Run(Type type, MethodInfo method, object[] data, Dictionary<Type, object> fixtures)
    {
        object[] given = type.GetConstructors()[0].GetParameters().Select(parameter =>
        {
            if (!fixtures.TryGetValue(parameter.ParameterType, out object? fixture))
            {
                fixtures[parameter.ParameterType] = fixture = Activator.CreateInstance(parameter.ParameterType)!;
            }
            return fixture;
        }).ToArray();
        object test = Activator.CreateInstance(type, given)!;
        try
        {
            if (method.Invoke(test, data) is Task task)
            {
                task.GetAwaiter().GetResult();
            }
        }
        finally
        {
            (test as IDisposable)?.Dispose();
        }
    }
}
