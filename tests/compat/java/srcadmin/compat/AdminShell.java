package compat;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import org.apache.rocketmq.tools.command.MQAdminStartup;

/**
 * Runs mqadmin commands in one JVM, because starting one for each costs seconds. Each input line is one
 * command, its words separated by tabs; after its output comes a line with {@link #END} alone.
 */
public final class AdminShell extends MQAdminStartup {
    private static final String END = "--end-of-command--";

    private AdminShell() {
    }

    public static void main(String[] args) {
        try {
            serve();
        } catch (IOException e) {
            e.printStackTrace();
        }
        System.exit(0);
    }

    private static void serve() throws IOException {
        System.setErr(System.out);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            SUB_COMMANDS.clear(); // some commands keep a closed client when run a second time
            try {
                MQAdminStartup.main0(line.split("\t"), null);
            } catch (Throwable e) {
                e.printStackTrace();
            }
            System.out.println();
            System.out.println(END);
            System.out.flush();
        }
    }
}
