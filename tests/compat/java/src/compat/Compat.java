package compat;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/**
 * Compat NAMESRV (all | more | list | NAME...): prints PASS or FAIL for each scenario and exits
 * with 1 when one failed. -Dcompat.parallel=N runs N scenarios at the same time (default 1).
 */
public final class Compat {
    private Compat() {
    }

    public static void main(String[] args) throws Exception {
        Scenarios known = new Scenarios();
        Sending.addTo(known);
        Consuming.addTo(known);
        Further.addTo(known);
        Version.addScenarios(known);
        if (args.length < 2) {
            System.err.println("usage: Compat NAMESRV (all | more | list | NAME...)");
            System.exit(2);
        }
        Map<String, Scenarios.Scenario> chosen = new LinkedHashMap<>();
        for (int i = 1; i < args.length; i++) {
            String name = args[i];
            if (name.equals("all")) {
                chosen.putAll(known.standard);
            } else if (name.equals("more")) {
                chosen.putAll(known.further);
            } else if (name.equals("list")) {
                known.standard.keySet().forEach(System.out::println);
                known.further.keySet().forEach(System.out::println);
            } else if (known.standard.containsKey(name)) {
                chosen.put(name, known.standard.get(name));
            } else if (known.further.containsKey(name)) {
                chosen.put(name, known.further.get(name));
            } else {
                System.err.println("no such scenario: " + name);
                System.exit(2);
            }
        }
        System.exit(runAll(args[0], chosen) ? 0 : 1);
    }

    private static boolean runAll(String namesrv, Map<String, Scenarios.Scenario> chosen) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(Integer.getInteger("compat.parallel", 1));
        long begin = System.nanoTime();
        List<Future<Boolean>> results = new ArrayList<>();
        chosen.forEach((name, scenario) -> results.add(pool.submit(() -> runOne(namesrv, name, scenario))));
        int failed = 0;
        for (Future<Boolean> result : results) {
            failed += result.get() ? 0 : 1;
        }
        if (!results.isEmpty()) {
            System.out.printf("%s client %s: %d of %d passed in %.1f s%n", failed == 0 ? "OK" : "BAD", Version.NAME,
                results.size() - failed, results.size(), (System.nanoTime() - begin) / 1e9);
        }
        pool.shutdown();
        return failed == 0;
    }

    private static boolean runOne(String namesrv, String name, Scenarios.Scenario scenario) {
        long begin = System.nanoTime();
        Throwable problem = null;
        try (Env env = new Env(namesrv)) {
            scenario.run(env);
        } catch (Throwable e) {
            problem = e;
        }
        double seconds = (System.nanoTime() - begin) / 1e9;
        synchronized (System.out) {
            if (problem == null) {
                System.out.printf("PASS %s (%.1f s)%n", name, seconds);
            } else {
                String reason = problem instanceof AssertionError ? problem.getMessage() : problem.toString();
                System.out.printf("FAIL %s: %s (%.1f s)%n", name, reason.replace('\n', ' '), seconds);
                problem.printStackTrace();
            }
            System.out.flush();
        }
        return problem == null;
    }
}
