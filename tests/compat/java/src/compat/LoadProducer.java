package compat;

import java.io.BufferedWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.message.Message;

/**
 * LoadProducer NAMESRV TOPIC THREADS SECONDS BODYSIZE OUTFILE [RATE]
 *
 * A producer with default settings. RATE, in messages per second over all threads, spaces the sends
 * out; without it each thread sends as fast as it is answered. Each body begins with the number of its
 * message and a blank; numbers
 * are unique within the run. OUTFILE gets a line per acknowledged send
 * {@code number queueId queueOffset startMicros endMicros msgId} (wall clock) and per failed one
 * {@code FAIL number startMicros endMicros reason}. The summary goes to standard output. SIGTERM ends
 * the run early, in order: what was sent is in OUTFILE and the summary is printed.
 */
public final class LoadProducer {
    private final DefaultMQProducer producer;
    private final String topic;
    private final int bodySize;
    private final AtomicLong numbers = new AtomicLong();
    private final AtomicLong failed = new AtomicLong();
    private final BlockingQueue<String> lines = new LinkedBlockingQueue<>(100_000);
    private final List<long[]> acked = new ArrayList<>();
    private final long wallBase = System.currentTimeMillis() * 1000;
    private final long nanoBase = System.nanoTime();
    private final CountDownLatch stopping = new CountDownLatch(1);
    private final CountDownLatch finished = new CountDownLatch(1);
    private final long pauseNanos;
    private volatile boolean stop;

    private LoadProducer(DefaultMQProducer producer, String topic, int bodySize, long pauseNanos) {
        this.producer = producer;
        this.topic = topic;
        this.bodySize = bodySize;
        this.pauseNanos = pauseNanos;
    }

    public static void main(String[] args) throws Exception {
        if (args.length != 6 && args.length != 7) {
            System.err.println("usage: LoadProducer NAMESRV TOPIC THREADS SECONDS BODYSIZE OUTFILE [RATE]");
            System.exit(2);
        }
        DefaultMQProducer producer = new DefaultMQProducer("load_producer");
        producer.setNamesrvAddr(args[0]);
        producer.start();
        int threads = Integer.parseInt(args[2]);
        long pause = args.length == 7 ? (long) (1e9 * threads / Double.parseDouble(args[6])) : 0;
        LoadProducer load = new LoadProducer(producer, args[1], Integer.parseInt(args[4]), pause);
        Runtime.getRuntime().addShutdownHook(new Thread(load::endEarly, "end-early"));
        load.run(threads, Integer.parseInt(args[3]), args[5]);
        producer.shutdown();
        load.finished.countDown();
        System.exit(load.acked.isEmpty() ? 1 : 0);
    }

    private void run(int threads, int seconds, String file) throws Exception {
        Thread writer = new Thread(() -> write(file), "writer");
        writer.start();
        List<Thread> senders = new ArrayList<>();
        long begin = micros();
        for (int i = 0; i < threads; i++) {
            Thread sender = new Thread(this::send, "sender-" + i);
            sender.start();
            senders.add(sender);
        }
        stopping.await(seconds, TimeUnit.SECONDS);
        stop = true;
        for (Thread sender : senders) {
            sender.join();
        }
        long end = micros();
        lines.put("");
        writer.join();
        summary(begin, end);
    }

    /** The JVM ends when this returns; a send in flight may take as long as its retries do. */
    private void endEarly() {
        stopping.countDown();
        try {
            finished.await(20, TimeUnit.SECONDS);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    private long micros() {
        return wallBase + (System.nanoTime() - nanoBase) / 1000;
    }

    private void send() {
        try {
            while (!stop) {
                TimeUnit.NANOSECONDS.sleep(pauseNanos);
                long number = numbers.getAndIncrement();
                long begin = micros();
                String reason;
                try {
                    SendResult result = producer.send(new Message(topic, body(number)));
                    long end = micros();
                    if (result.getSendStatus() == SendStatus.SEND_OK) {
                        synchronized (acked) {
                            acked.add(new long[] {begin, end});
                        }
                        lines.put(number + " " + result.getMessageQueue().getQueueId() + " " + result.getQueueOffset()
                            + " " + begin + " " + end + " " + result.getMsgId());
                        continue;
                    }
                    reason = result.getSendStatus().name();
                } catch (InterruptedException e) {
                    throw e;
                } catch (Exception e) {
                    reason = String.valueOf(e.getMessage()).split("\n")[0];
                }
                failed.incrementAndGet();
                lines.put("FAIL " + number + " " + begin + " " + micros() + " " + reason);
                Thread.sleep(5); // some failures return at once: do not spin on them
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    private byte[] body(long number) {
        byte[] head = (number + " ").getBytes(StandardCharsets.US_ASCII);
        byte[] body = Arrays.copyOf(head, Math.max(bodySize, head.length));
        Arrays.fill(body, head.length, body.length, (byte) 'x');
        return body;
    }

    private void write(String file) {
        try (BufferedWriter out = Files.newBufferedWriter(Paths.get(file), StandardCharsets.UTF_8,
            StandardOpenOption.CREATE, StandardOpenOption.APPEND)) {
            while (true) {
                String line = lines.poll();
                if (line == null) {
                    out.flush();
                    line = lines.take();
                }
                if (line.isEmpty()) {
                    return;
                }
                out.write(line);
                out.write('\n');
            }
        } catch (Exception e) {
            System.err.println("cannot write " + file + ": " + e);
            System.exit(3);
        }
    }

    private void summary(long begin, long end) {
        long gap = 0;
        long gapAt = 0;
        acked.sort((a, b) -> Long.compare(a[1], b[1]));
        for (int i = 1; i < acked.size(); i++) {
            long length = acked.get(i)[1] - acked.get(i - 1)[1];
            if (length > gap) {
                gap = length;
                gapAt = acked.get(i - 1)[1];
            }
        }
        long[] times = acked.stream().mapToLong(a -> a[1] - a[0]).sorted().toArray();
        System.out.printf("acked %d failed %d seconds %.1f rate %.0f/s%n", times.length, failed.get(),
            (end - begin) / 1e6, times.length / ((end - begin) / 1e6));
        if (times.length == 0) {
            return;
        }
        System.out.printf("latencyMs p50 %.2f p99 %.2f p999 %.2f max %.2f%n", at(times, 0.5), at(times, 0.99),
            at(times, 0.999), at(times, 1));
        System.out.printf("firstAckAfterMs %.1f lastAckBeforeEndMs %.1f%n", (acked.get(0)[1] - begin) / 1e3,
            (end - acked.get(acked.size() - 1)[1]) / 1e3);
        System.out.printf("longestGapMs %.1f atMicros %d%n", gap / 1e3, gapAt);
    }

    private static double at(long[] sorted, double share) {
        return sorted[(int) Math.min(sorted.length - 1, sorted.length * share)] / 1e3;
    }
}
