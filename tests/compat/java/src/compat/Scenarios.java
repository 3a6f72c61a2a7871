package compat;

import java.util.LinkedHashMap;
import java.util.Map;

/** Named scenarios: the standard list and a second one for features beyond it. */
final class Scenarios {
    interface Scenario {
        void run(Env env) throws Exception;
    }

    final Map<String, Scenario> standard = new LinkedHashMap<>();
    final Map<String, Scenario> further = new LinkedHashMap<>();

    void add(String name, Scenario scenario) {
        standard.put(name, scenario);
    }

    void more(String name, Scenario scenario) {
        further.put(name, scenario);
    }
}
