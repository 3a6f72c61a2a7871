package compat;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.rocketmq.client.QueryResult;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** What producers do, checked by reading back with plain pulls. */
final class Sending {
    private Sending() {
    }

    static void addTo(Scenarios to) {
        to.add("sync-send", Sending::sync);
        to.add("auto-create-topic", Sending::autoCreate);
        to.add("async-send", Sending::async);
        to.add("oneway-send", Sending::oneway);
        to.add("ordered-send", Sending::ordered);
        to.add("batch-send", Sending::batch);
        to.add("big-body", Sending::bigBody);
        to.add("view-message", Sending::view);
        to.add("offset-search", Sending::offsets);
    }

    private static void sync(Env env) throws Exception {
        String topic = env.topic("sync");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 4);
        Map<Integer, Long> next = new TreeMap<>();
        Set<String> ids = new TreeSet<>();
        for (int i = 0; i < 40; i++) {
            Message message = new Message(topic, "TagS", "key" + i, Env.bytes(Env.numberedOne("sync", i)));
            message.putUserProperty("number", Integer.toString(i));
            message.putUserProperty("snowman", "☃");
            SendResult result = Env.sendOk(producer.send(message));
            int queue = result.getMessageQueue().getQueueId();
            Env.equal("queue offset", next.getOrDefault(queue, 0L), result.getQueueOffset());
            next.put(queue, result.getQueueOffset() + 1);
            ids.add(result.getMsgId());
        }
        Env.equal("distinct ids", 40, ids.size());
        Env.equal("queues used", 4, next.size());
        for (MessageQueue queue : producer.fetchPublishMessageQueues(topic)) {
            Env.equal("max offset", next.get(queue.getQueueId()), producer.maxOffset(queue));
            Env.equal("min offset", 0L, producer.minOffset(queue));
        }
        List<MessageExt> stored = env.readAll(topic, 40);
        Env.equal("bodies", Env.numbered("sync", 40), new TreeSet<>(Env.texts(stored)));
        for (MessageExt message : stored) {
            String number = message.getUserProperty("number");
            Env.equal("body", Env.numberedOne("sync", Integer.parseInt(number)), Env.text(message.getBody()));
            Env.equal("keys", "key" + number, message.getKeys());
            Env.equal("tags", "TagS", message.getTags());
            Env.equal("unicode property", "☃", message.getUserProperty("snowman"));
            Env.equal("reconsume times", 0, message.getReconsumeTimes());
            Env.check(ids.contains(message.getMsgId()), "unknown id " + message.getMsgId());
            Env.check(message.getBornTimestamp() <= message.getStoreTimestamp() + 1000, "stored before it was born");
        }
    }

    /** Needs a server that creates topics at the first send. */
    private static void autoCreate(Env env) throws Exception {
        String topic = env.topic("auto");
        DefaultMQProducer producer = env.producer();
        for (int i = 0; i < 8; i++) {
            Env.sendOk(producer.send(new Message(topic, Env.bytes(Env.numberedOne("auto", i)))));
        }
        Env.equal("bodies", Env.numbered("auto", 8), new TreeSet<>(Env.texts(env.readAll(topic, 8))));
    }

    private static void async(Env env) throws Exception {
        String topic = env.topic("async");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 4);
        int count = 200;
        Semaphore inFlight = new Semaphore(16); // fewer than what makes a slow broker answer "busy"
        CountDownLatch open = new CountDownLatch(count);
        AtomicReference<Throwable> failure = new AtomicReference<>();
        Set<String> places = Collections.synchronizedSet(new TreeSet<>());
        for (int i = 0; i < count; i++) {
            Env.check(inFlight.tryAcquire(30, TimeUnit.SECONDS), "no callback for 30 s");
            producer.send(new Message(topic, Env.bytes(Env.numberedOne("async", i))), new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    places.add(result.getMessageQueue().getQueueId() + "/" + result.getQueueOffset());
                    inFlight.release();
                    open.countDown();
                }

                @Override
                public void onException(Throwable e) {
                    failure.compareAndSet(null, e);
                    inFlight.release();
                    open.countDown();
                }
            });
        }
        Env.check(open.await(30, TimeUnit.SECONDS), open.getCount() + " callbacks missing");
        Env.equal("failure", null, failure.get());
        Env.equal("distinct places", count, places.size());
        Env.equal("bodies", Env.numbered("async", count), new TreeSet<>(Env.texts(env.readAll(topic, count))));
    }

    private static void oneway(Env env) throws Exception {
        String topic = env.topic("oneway");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 4);
        for (int i = 0; i < 20; i++) {
            producer.sendOneway(new Message(topic, Env.bytes(Env.numberedOne("oneway", i))));
        }
        Env.equal("bodies", Env.numbered("oneway", 20), new TreeSet<>(Env.texts(env.readAll(topic, 20))));
    }

    private static void ordered(Env env) throws Exception {
        String topic = env.topic("ordered");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 4);
        for (int i = 0; i < 60; i++) {
            Message message = new Message(topic, Env.bytes(Env.numberedOne("ordered", i)));
            SendResult result = Env.sendOk(producer.send(message,
                (queues, sent, order) -> queues.get((Integer) order % queues.size()), i % 3));
            Env.equal("queue", i % 3, result.getMessageQueue().getQueueId());
        }
        List<MessageExt> stored = env.readAll(topic, 60);
        for (int queue = 0; queue < 3; queue++) {
            List<String> want = new ArrayList<>();
            List<String> got = new ArrayList<>();
            for (int i = queue; i < 60; i += 3) {
                want.add(Env.numberedOne("ordered", i));
            }
            for (MessageExt message : stored) {
                if (message.getQueueId() == queue) {
                    Env.equal("offset in queue", (long) got.size(), message.getQueueOffset());
                    got.add(Env.text(message.getBody()));
                }
            }
            Env.equal("order in queue " + queue, want, got);
        }
    }

    private static void batch(Env env) throws Exception {
        String topic = env.topic("batch");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 1);
        for (int from = 0; from < 30; from += 10) {
            List<Message> messages = new ArrayList<>();
            for (int i = from; i < from + 10; i++) {
                messages.add(new Message(topic, "TagB", "batch" + i, Env.bytes(Env.numberedOne("batch", i))));
            }
            SendResult result = producer.send(messages);
            Env.equal("status", "SEND_OK", result.getSendStatus().name());
            Env.equal("ids in a batch", 10, result.getMsgId().split(",").length);
            Env.equal("offset ids in a batch", 10, result.getOffsetMsgId().split(",").length);
            Env.equal("first offset", (long) from, result.getQueueOffset());
        }
        List<MessageExt> stored = env.readAll(topic, 30);
        Env.equal("bodies in order", new ArrayList<>(Env.numbered("batch", 30)), Env.texts(stored));
        Set<String> ids = new TreeSet<>();
        for (int i = 0; i < 30; i++) {
            MessageExt message = stored.get(i);
            Env.equal("offset", (long) i, message.getQueueOffset());
            Env.equal("keys", "batch" + i, message.getKeys());
            Env.equal("tags", "TagB", message.getTags());
            ids.add(message.getMsgId());
        }
        Env.equal("distinct ids", 30, ids.size());
    }

    private static void bigBody(Env env) throws Exception {
        String topic = env.topic("big");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 1);
        byte[] regular = new byte[1 << 20];
        for (int i = 0; i < regular.length; i++) {
            regular[i] = (byte) ('a' + i / 64 % 26);
        }
        byte[] random = new byte[1 << 20];
        new Random(7).nextBytes(random);
        Env.sendOk(producer.send(new Message(topic, regular.clone())));
        Env.sendOk(producer.send(new Message(topic, random.clone())));
        List<MessageExt> stored = env.readAll(topic, 2);
        Env.check(Arrays.equals(regular, stored.get(0).getBody()), "compressible body differs");
        Env.check(Arrays.equals(random, stored.get(1).getBody()), "random body differs");
        Env.check(stored.get(0).getStoreSize() < 100_000, "not stored compressed: " + stored.get(0).getStoreSize());
        Env.check(stored.get(1).getStoreSize() >= 1 << 20, "too short: " + stored.get(1).getStoreSize());
    }

    private static void view(Env env) throws Exception {
        String topic = env.topic("view");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 2);
        String key = "order" + System.nanoTime();
        long begin = System.currentTimeMillis();
        SendResult sent = null;
        for (int i = 0; i < 5; i++) {
            sent = Env.sendOk(producer.send(new Message(topic, "T", key, Env.bytes(Env.numberedOne("view", i)))));
        }
        MessageExt byOffset = producer.viewMessage(topic, sent.getOffsetMsgId());
        Env.equal("body by offset id", Env.numberedOne("view", 4), Env.text(byOffset.getBody()));
        Env.equal("queue offset", sent.getQueueOffset(), byOffset.getQueueOffset());
        String uniqueId = sent.getMsgId();
        MessageExt[] byId = new MessageExt[1];
        Env.await("the message by its unique id", 30, () -> {
            try {
                byId[0] = producer.viewMessage(topic, uniqueId);
            } catch (MQClientException e) {
                return false;
            }
            return byId[0] != null;
        });
        Env.equal("body by unique id", Env.numberedOne("view", 4), Env.text(byId[0].getBody()));
        Env.await("five messages by key", 30, () -> {
            try {
                QueryResult found = producer.queryMessage(topic, key, 32, begin - 60_000, System.currentTimeMillis() + 60_000);
                return new TreeSet<>(Env.texts(found.getMessageList())).equals(Env.numbered("view", 5));
            } catch (MQClientException e) {
                return false;
            }
        });
    }

    private static void offsets(Env env) throws Exception {
        String topic = env.topic("offsets");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 1);
        MessageQueue queue = producer.fetchPublishMessageQueues(topic).get(0);
        Env.equal("max of an empty queue", 0L, producer.maxOffset(queue));
        for (int i = 0; i < 10; i++) {
            Env.sendOk(producer.send(new Message(topic, Env.bytes(Env.numberedOne("offsets", i)))));
            Thread.sleep(5); // spreads the store times
        }
        List<MessageExt> stored = env.readAll(topic, 10);
        MessageExt sixth = stored.get(5);
        Env.equal("offset at a store time", 5L, producer.searchOffset(queue, sixth.getStoreTimestamp()));
        Env.equal("offset before all", 0L, producer.searchOffset(queue, stored.get(0).getStoreTimestamp() - 60_000));
        Env.equal("earliest store time", stored.get(0).getStoreTimestamp(), producer.earliestMsgStoreTime(queue));
        Env.equal("max offset", 10L, producer.maxOffset(queue));
    }
}
