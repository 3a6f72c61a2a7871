package compat;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** What consumers do: sharing, order, filters, retry, delay, progress. */
final class Consuming {
    private Consuming() {
    }

    static void addTo(Scenarios to) {
        to.add("push-clustering", Consuming::clustering);
        to.add("push-broadcasting", Consuming::broadcasting);
        to.add("push-orderly", Consuming::orderly);
        to.add("long-poll", Consuming::longPoll);
        to.add("lite-pull", Consuming::litePull);
        to.add("tag-filter", Consuming::tagFilter);
        to.add("retry-dlq", Consuming::retry);
        to.add("delay-level", Consuming::delayLevel);
        to.add("rebalance-takeover", Consuming::takeover);
        to.add("offset-survives-restart", Consuming::offsetSurvives);
    }

    private static void send(DefaultMQProducer producer, String topic, String name, int from, int to) throws Exception {
        for (int i = from; i < to; i++) {
            Env.sendOk(producer.send(new Message(topic, Env.bytes(Env.numberedOne(name, i)))));
        }
    }

    private static DefaultMQPushConsumer start(Env env, String group, String topic, Inbox inbox) throws Exception {
        DefaultMQPushConsumer consumer = env.pushConsumer(group, topic, "*");
        consumer.registerMessageListener(inbox.concurrently());
        consumer.start();
        return consumer;
    }

    private static void clustering(Env env) throws Exception {
        String topic = env.topic("cluster");
        String group = env.group("cluster");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 4);
        Inbox first = new Inbox();
        Inbox second = new Inbox();
        DefaultMQPushConsumer a = start(env, group, topic, first);
        DefaultMQPushConsumer b = start(env, group, topic, second);
        env.awaitShared(a, b, topic, 2);
        send(producer, topic, "m", 0, 200);
        Env.await("200 messages", Env.DELIVERY, () -> first.size() + second.size() >= 200);
        List<String> all = first.bodies();
        all.addAll(second.bodies());
        Collections.sort(all);
        Env.equal("every message once", new ArrayList<>(Env.numbered("m", 200)), all);
        Env.equal("share of the first", 100, first.size());
    }

    private static void broadcasting(Env env) throws Exception {
        String topic = env.topic("broad");
        String group = env.group("broad");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 4);
        List<Inbox> inboxes = new ArrayList<>();
        for (int i = 0; i < 2; i++) {
            Inbox inbox = new Inbox();
            DefaultMQPushConsumer consumer = env.pushConsumer(group, topic, "*");
            Version.broadcasting(consumer);
            consumer.registerMessageListener(inbox.concurrently());
            consumer.start();
            env.awaitQueues(consumer, topic, 4);
            inboxes.add(inbox);
        }
        send(producer, topic, "m", 0, 50);
        for (Inbox inbox : inboxes) {
            Env.await("50 messages", Env.DELIVERY, () -> inbox.size() >= 50);
            Env.equal("all of them", Env.numbered("m", 50), inbox.distinct());
            Env.equal("each once", 50, inbox.size());
        }
    }

    /** One message is put off once: it must come again before its successors. */
    private static void orderly(Env env) throws Exception {
        String topic = env.topic("orderly");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 4);
        Inbox inbox = new Inbox();
        AtomicBoolean putOff = new AtomicBoolean();
        DefaultMQPushConsumer consumer = env.pushConsumer(env.group("orderly"), topic, "*");
        consumer.registerMessageListener((MessageListenerOrderly) (batch, context) -> {
            if (Env.text(batch.get(0).getBody()).equals(Env.numberedOne("m", 17)) && putOff.compareAndSet(false, true)) {
                context.setSuspendCurrentQueueTimeMillis(200);
                return ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT;
            }
            inbox.add(batch);
            return ConsumeOrderlyStatus.SUCCESS;
        });
        consumer.start();
        for (int i = 0; i < 80; i++) {
            Env.sendOk(producer.send(new Message(topic, Env.bytes(Env.numberedOne("m", i))),
                (queues, message, order) -> queues.get((Integer) order), i % 4));
        }
        Env.await("80 messages in order", Env.DELIVERY, () -> inbox.size() >= 80);
        Env.check(putOff.get(), "no message was put off");
        for (Map.Entry<Integer, List<String>> queue : inbox.byQueue().entrySet()) {
            List<String> want = new ArrayList<>();
            for (int i = queue.getKey(); i < 80; i += 4) {
                want.add(Env.numberedOne("m", i));
            }
            Env.equal("order in queue " + queue.getKey(), want, queue.getValue());
        }
        Env.equal("each once", 80, inbox.size());
    }

    /** A waiting consumer gets a message at once, not at the next poll. */
    private static void longPoll(Env env) throws Exception {
        String topic = env.topic("poll");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 1);
        Map<String, Long> arrived = new ConcurrentHashMap<>();
        DefaultMQPushConsumer consumer = env.pushConsumer(env.group("poll"), topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            for (MessageExt message : batch) {
                arrived.put(Env.text(message.getBody()), System.nanoTime());
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        env.awaitQueues(consumer, topic, 1);
        send(producer, topic, "warm", 0, 1);
        Env.await("the first message", Env.DELIVERY, () -> arrived.size() == 1);
        List<Long> millis = new ArrayList<>();
        for (int i = 0; i < 5; i++) {
            String body = Env.numberedOne("m", i);
            Thread.sleep(300); // the consumer's next pull is parked by now
            long sent = System.nanoTime();
            Env.sendOk(producer.send(new Message(topic, Env.bytes(body))));
            Env.await(body, Env.DELIVERY, () -> arrived.containsKey(body));
            millis.add((arrived.get(body) - sent) / 1_000_000);
        }
        Collections.sort(millis);
        Env.check(millis.get(2) < 1000, "milliseconds from send to arrival: " + millis);
    }

    private static void litePull(Env env) throws Exception {
        String topic = env.topic("lite");
        String group = env.group("lite");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 4);
        send(producer, topic, "m", 0, 100);
        DefaultLitePullConsumer consumer = env.litePullConsumer(group);
        consumer.subscribe(topic, "*");
        consumer.start();
        Inbox inbox = new Inbox();
        Env.await("100 polled messages", Env.DELIVERY, () -> {
            inbox.add(consumer.poll(500));
            return inbox.size() >= 100;
        });
        Env.equal("bodies", Env.numbered("m", 100), inbox.distinct());
        Env.equal("each once", 100, inbox.size());
        consumer.commitSync();
        Env.await("committed offsets", Env.DELIVERY, () -> {
            long sum = 0;
            for (MessageQueue queue : consumer.assignment()) {
                Long at = consumer.committed(queue);
                sum += at == null ? 0 : at;
            }
            return sum == 100;
        });
        consumer.shutdown();
        env.awaitCommitted(group, topic, 100);

        send(producer, topic, "m", 100, 110);
        DefaultLitePullConsumer again = env.litePullConsumer(group);
        again.subscribe(topic, "*");
        again.start();
        Inbox rest = new Inbox();
        Env.await("10 more messages", Env.DELIVERY, () -> {
            rest.add(again.poll(500));
            return rest.size() >= 10;
        });
        Set<String> want = Env.numbered("m", 110);
        want.removeAll(Env.numbered("m", 100));
        Env.equal("only the new ones", want, rest.distinct());
    }

    private static void tagFilter(Env env) throws Exception {
        String topic = env.topic("tags");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 2);
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = env.pushConsumer(env.group("tags"), topic, "A || B");
        consumer.registerMessageListener(inbox.concurrently());
        consumer.start();
        String[] tags = {"A", "B", "C", null};
        Set<String> want = new TreeSet<>();
        for (int i = 0; i < 80; i++) {
            String tag = tags[i / 2 % 4];
            String body = Env.numberedOne("tag" + tag, i);
            Env.sendOk(producer.send(tag == null
                ? new Message(topic, Env.bytes(body))
                : new Message(topic, tag, Env.bytes(body))));
            if ("A".equals(tag) || "B".equals(tag)) {
                want.add(body);
            }
        }
        Env.await("40 messages tagged A or B", Env.DELIVERY, () -> inbox.size() >= 40);
        // A last pair behind everything: once it is here, nothing unwanted is on its way.
        for (int queue = 0; queue < 2; queue++) {
            Env.sendOk(producer.send(new Message(topic, "A", Env.bytes("last-" + queue)),
                (queues, message, number) -> queues.get((Integer) number), queue));
            want.add("last-" + queue);
        }
        Env.await("the last pair", Env.DELIVERY, () -> inbox.size() >= 42);
        Env.equal("A and B only", want, inbox.distinct());
        Env.equal("each once", 42, inbox.size());
    }

    private static void retry(Env env) throws Exception {
        String topic = env.topic("retry");
        String group = env.group("retry");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 1);
        List<Integer> times = Collections.synchronizedList(new ArrayList<>());
        Set<String> topics = Collections.synchronizedSet(new TreeSet<>());
        Set<String> ids = Collections.synchronizedSet(new TreeSet<>());
        DefaultMQPushConsumer consumer = env.pushConsumer(group, topic, "*");
        consumer.setMaxReconsumeTimes(2);
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            MessageExt message = batch.get(0);
            times.add(message.getReconsumeTimes());
            topics.add(message.getTopic());
            ids.add(message.getMsgId());
            context.setDelayLevelWhenNextConsume(1);
            return ConsumeConcurrentlyStatus.RECONSUME_LATER;
        });
        consumer.start();
        SendResult sent = Env.sendOk(producer.send(new Message(topic, "T", "k", Env.bytes("never right"))));
        Env.await("three attempts (seen " + times + ")", 90, () -> times.size() >= 3);
        MessageExt dead = env.readAll("%DLQ%" + group, 1).get(0);
        Env.equal("attempts", Arrays.asList(0, 1, 2), new ArrayList<>(times));
        Env.equal("topic shown to the listener", Collections.singleton(topic), topics);
        Env.equal("ids shown to the listener", Collections.singleton(sent.getMsgId()), ids);
        Env.equal("body", "never right", Env.text(dead.getBody()));
        Env.equal("keys", "k", dead.getKeys());
        Env.equal("tags", "T", dead.getTags());
        Env.equal("origin topic", topic, dead.getProperty("RETRY_TOPIC"));
    }

    private static void delayLevel(Env env) throws Exception {
        String topic = env.topic("delay");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 2);
        Map<String, Long> arrived = new ConcurrentHashMap<>();
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = env.pushConsumer(env.group("delay"), topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            for (MessageExt message : batch) {
                arrived.put(Env.text(message.getBody()), System.currentTimeMillis());
            }
            inbox.add(batch);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        env.awaitQueues(consumer, topic, 2);
        send(producer, topic, "warm", 0, 1);
        Env.await("the first message", Env.DELIVERY, () -> inbox.size() == 1);
        Message delayed = new Message(topic, "T", "k", Env.bytes("delayed"));
        delayed.setDelayTimeLevel(1);
        long sent = System.currentTimeMillis();
        Env.sendOk(producer.send(delayed));
        Env.sendOk(producer.send(new Message(topic, Env.bytes("at once"))));
        Env.await("both messages", Env.DELIVERY, () -> inbox.size() >= 3);
        long waited = arrived.get("delayed") - sent;
        Env.check(waited >= 900 && waited < 10_000, "delayed by " + waited + " ms");
        Env.check(arrived.get("at once") <= arrived.get("delayed"), "the plain message came last");
        for (MessageExt message : inbox.all()) {
            Env.equal("topic", topic, message.getTopic());
            if (Env.text(message.getBody()).equals("delayed")) {
                Env.equal("tags", "T", message.getTags());
                Env.equal("keys", "k", message.getKeys());
                System.err.println("properties of a delayed message: " + message.getProperties());
            }
        }
    }

    private static void takeover(Env env) throws Exception {
        String topic = env.topic("takeover");
        String group = env.group("takeover");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 4);
        Inbox first = new Inbox();
        Inbox second = new Inbox();
        DefaultMQPushConsumer a = start(env, group, topic, first);
        env.awaitQueues(a, topic, 4);
        DefaultMQPushConsumer b = start(env, group, topic, second);
        env.awaitShared(a, b, topic, 2);
        send(producer, topic, "m", 0, 40);
        Env.await("40 messages", Env.DELIVERY, () -> first.size() + second.size() >= 40);
        long begin = System.nanoTime();
        a.shutdown();
        Env.await("all queues at the second consumer", 30, () -> Env.owned(b, topic).size() == 4);
        System.err.println("takeover after " + (System.nanoTime() - begin) / 1_000_000 + " ms");
        int before = second.size();
        send(producer, topic, "m", 40, 80);
        Env.await("40 messages at the second consumer", Env.DELIVERY, () -> second.size() >= before + 40);
        List<String> all = first.bodies();
        all.addAll(second.bodies());
        Collections.sort(all);
        Env.equal("every message once", new ArrayList<>(Env.numbered("m", 80)), all);
    }

    private static void offsetSurvives(Env env) throws Exception {
        String topic = env.topic("survive");
        String group = env.group("survive");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 4);
        send(producer, topic, "m", 0, 40);
        Inbox first = new Inbox();
        DefaultMQPushConsumer a = start(env, group, topic, first);
        Env.await("40 messages", Env.DELIVERY, () -> first.size() >= 40);
        a.shutdown();
        env.awaitCommitted(group, topic, 40);
        Env.equal("before the restart", Env.numbered("m", 40), first.distinct());
        send(producer, topic, "m", 40, 60);
        Inbox second = new Inbox();
        start(env, group, topic, second);
        Env.await("20 more messages", Env.DELIVERY, () -> second.size() >= 20);
        Set<String> want = Env.numbered("m", 60);
        want.removeAll(Env.numbered("m", 40));
        Env.equal("after the restart", new ArrayList<>(want), new ArrayList<>(sorted(second.bodies())));
    }

    private static List<String> sorted(List<String> list) {
        Collections.sort(list);
        return list;
    }
}
