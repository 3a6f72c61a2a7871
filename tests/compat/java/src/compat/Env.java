package compat;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** What one scenario works with: fresh names, clients closed afterwards, checks and bounded waits. */
@SuppressWarnings("deprecation")
final class Env implements AutoCloseable {
    /** The topic whose route tells where topics may be created. */
    static final String TEMPLATE_TOPIC = "TBW102";

    /**
     * Seconds to wait for messages. A consumer whose heartbeat is overtaken by its first rebalance is
     * refused by the Java broker (25, subscription not latest) until its next heartbeat, 30 s later.
     */
    static final int DELIVERY = 60;

    private static final String RUN = Long.toString(System.currentTimeMillis(), 36);
    private static final AtomicInteger INSTANCES = new AtomicInteger();

    private final String namesrv;
    private final List<Runnable> closers = Collections.synchronizedList(new ArrayList<>());

    Env(String namesrv) {
        this.namesrv = namesrv;
    }

    String namesrv() {
        return namesrv;
    }

    String topic(String name) {
        return "compat_" + name + "_" + RUN + "_" + INSTANCES.incrementAndGet();
    }

    String group(String name) {
        return "CG_" + name + "_" + RUN + "_" + INSTANCES.incrementAndGet();
    }

    DefaultMQProducer producer() throws MQClientException {
        DefaultMQProducer producer = new DefaultMQProducer(group("p"));
        producer.setNamesrvAddr(namesrv);
        producer.start();
        closing(producer::shutdown);
        return producer;
    }

    void closing(Runnable closer) {
        closers.add(closer);
    }

    /** Reads from the first offset so that a test does not depend on when the consumer came. */
    DefaultMQPushConsumer pushConsumer(String group, String topic, String expression) throws MQClientException {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group);
        consumer.setNamesrvAddr(namesrv);
        consumer.setInstanceName("i" + RUN + INSTANCES.incrementAndGet());
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        // Otherwise a shutdown may leave out the offset of a message whose listener is just returning.
        consumer.setAwaitTerminationMillisWhenShutdown(10_000);
        consumer.subscribe(topic, expression);
        closing(consumer::shutdown);
        return consumer;
    }

    DefaultLitePullConsumer litePullConsumer(String group) {
        DefaultLitePullConsumer consumer = new DefaultLitePullConsumer(group);
        consumer.setNamesrvAddr(namesrv);
        consumer.setInstanceName("i" + RUN + INSTANCES.incrementAndGet());
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        closing(consumer::shutdown);
        return consumer;
    }

    void createTopic(DefaultMQProducer producer, String topic, int queues) throws Exception {
        Version.createTopic(producer, topic, queues);
        await("route of " + topic, 40, () -> {
            try {
                return producer.fetchPublishMessageQueues(topic).size() == queues;
            } catch (MQClientException e) {
                return false;
            }
        });
    }

    static Set<MessageQueue> owned(DefaultMQPushConsumer consumer, String topic) {
        Set<MessageQueue> out = new TreeSet<>();
        for (MessageQueue queue : consumer.getDefaultMQPushConsumerImpl().getRebalanceImpl().getProcessQueueTable().keySet()) {
            if (queue.getTopic().equals(topic)) {
                out.add(queue);
            }
        }
        return out;
    }

    void awaitQueues(DefaultMQPushConsumer consumer, String topic, int count) throws Exception {
        await(count + " queues of " + topic + " at one consumer", 60, () -> owned(consumer, topic).size() == count);
    }

    /** Two consumers each hold half of the queues, none held by both. */
    void awaitShared(DefaultMQPushConsumer a, DefaultMQPushConsumer b, String topic, int each) throws Exception {
        await("an even split of " + topic, 60, () -> {
            Set<MessageQueue> both = owned(a, topic);
            int first = both.size();
            both.addAll(owned(b, topic));
            return first == each && both.size() == 2 * each;
        });
    }

    /** Reads all messages of a topic with plain pulls, at least `count` of them, ordered by queue and offset. */
    List<MessageExt> readAll(String topic, int count) throws Exception {
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer(group("reader"));
        consumer.setNamesrvAddr(namesrv);
        consumer.setInstanceName("i" + RUN + INSTANCES.incrementAndGet());
        consumer.start();
        try {
            List<MessageQueue> queues = new ArrayList<>();
            await("readable queues of " + topic, 40, () -> {
                try {
                    queues.clear();
                    queues.addAll(consumer.fetchSubscribeMessageQueues(topic));
                } catch (MQClientException e) {
                    return false;
                }
                return !queues.isEmpty();
            });
            Collections.sort(queues);
            Map<MessageQueue, Long> next = new TreeMap<>();
            Map<MessageQueue, List<MessageExt>> got = new TreeMap<>();
            for (MessageQueue queue : queues) {
                next.put(queue, consumer.minOffset(queue));
                got.put(queue, new ArrayList<>());
            }
            await(count + " messages in " + topic, 40, () -> {
                int sum = 0;
                for (MessageQueue queue : queues) {
                    while (true) {
                        PullResult result = consumer.pull(queue, "*", next.get(queue), 32);
                        next.put(queue, result.getNextBeginOffset());
                        if (result.getPullStatus() != PullStatus.FOUND) {
                            break;
                        }
                        got.get(queue).addAll(result.getMsgFoundList());
                    }
                    sum += got.get(queue).size();
                }
                return sum >= count;
            });
            List<MessageExt> out = new ArrayList<>();
            got.values().forEach(out::addAll);
            return out;
        } finally {
            consumer.shutdown();
        }
    }

    /** Waits until the server has the group at `sum` over all queues of the topic: commits are sent without an answer. */
    void awaitCommitted(String group, String topic, long sum) throws Exception {
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer(group);
        consumer.setNamesrvAddr(namesrv);
        consumer.setInstanceName("i" + RUN + INSTANCES.incrementAndGet());
        consumer.start();
        try {
            Set<MessageQueue> queues = consumer.fetchSubscribeMessageQueues(topic);
            await(sum + " committed by " + group, DELIVERY, () -> {
                long committed = 0;
                for (MessageQueue queue : queues) {
                    committed += Math.max(0, consumer.fetchConsumeOffset(queue, true));
                }
                return committed == sum;
            });
        } finally {
            consumer.shutdown();
        }
    }

    @Override
    public void close() {
        List<Runnable> all = new ArrayList<>(closers);
        Collections.reverse(all);
        for (Runnable closer : all) {
            try {
                closer.run();
            } catch (RuntimeException e) {
                System.err.println("while closing: " + e);
            }
        }
    }

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static String text(byte[] bytes) {
        return new String(bytes, StandardCharsets.UTF_8);
    }

    static List<String> texts(Collection<MessageExt> messages) {
        List<String> out = new ArrayList<>();
        for (MessageExt message : messages) {
            out.add(text(message.getBody()));
        }
        return out;
    }

    /** name-0 … name-(count-1), padded so that they sort. */
    static Set<String> numbered(String name, int count) {
        Set<String> out = new TreeSet<>();
        for (int i = 0; i < count; i++) {
            out.add(numberedOne(name, i));
        }
        return out;
    }

    static String numberedOne(String name, int i) {
        return String.format("%s-%05d", name, i);
    }

    static SendResult sendOk(SendResult result) {
        check(result != null, "no send result");
        equal("send status", SendStatus.SEND_OK, result.getSendStatus());
        // 16 bytes on a host with an IPv4 address, 28 on one with IPv6 only.
        check(result.getMsgId() != null && result.getMsgId().matches("[0-9A-F]{32}|[0-9A-F]{56}"), "msgId " + result.getMsgId());
        check(result.getOffsetMsgId() != null && !result.getOffsetMsgId().isEmpty(), "no offset message id");
        check(result.getQueueOffset() >= 0, "queue offset " + result.getQueueOffset());
        return result;
    }

    static void check(boolean ok, String otherwise) {
        if (!ok) {
            throw new AssertionError(otherwise);
        }
    }

    static void equal(String what, Object want, Object got) {
        if (!Objects.equals(want, got)) {
            throw new AssertionError(what + ": expected " + brief(want) + " but got " + brief(got));
        }
    }

    private static String brief(Object value) {
        String text = String.valueOf(value);
        return text.length() <= 600 ? text : text.substring(0, 600) + "…";
    }

    static void await(String what, int seconds, Callable<Boolean> condition) throws Exception {
        long end = System.nanoTime() + seconds * 1_000_000_000L;
        while (!condition.call()) {
            if (System.nanoTime() > end) {
                throw new AssertionError("not within " + seconds + " s: " + what);
            }
            Thread.sleep(20);
        }
    }
}
