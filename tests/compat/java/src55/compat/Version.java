package compat;

import java.util.Collections;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.remoting.protocol.heartbeat.MessageModel;

/** What differs between the client generations: this is the 5.5 one. */
final class Version {
    static final String NAME = "5.5";

    private Version() {
    }

    static void createTopic(DefaultMQProducer producer, String topic, int queues) throws MQClientException {
        producer.createTopic(Env.TEMPLATE_TOPIC, topic, queues, Collections.<String, String>emptyMap());
    }

    static void broadcasting(DefaultMQPushConsumer consumer) {
        consumer.setMessageModel(MessageModel.BROADCASTING);
    }

    static void addScenarios(Scenarios to) {
        to.more("delay-ms", Version::delayMillis);
    }

    /** A message with a delay in milliseconds comes no earlier than asked, give or take the timer's second. */
    private static void delayMillis(Env env) throws Exception {
        String topic = env.topic("delayms");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 2);
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = env.pushConsumer(env.group("delayms"), topic, "*");
        consumer.registerMessageListener(inbox.concurrently());
        consumer.start();
        env.awaitQueues(consumer, topic, 2);
        Env.sendOk(producer.send(new Message(topic, Env.bytes("at once"))));
        Env.await("the first message", Env.DELIVERY, () -> inbox.size() == 1);
        Message message = new Message(topic, Env.bytes("later"));
        message.setDelayTimeMs(3000);
        long sent = System.currentTimeMillis();
        Env.sendOk(producer.send(message));
        Env.await("the delayed message", 30, () -> inbox.size() == 2);
        long waited = System.currentTimeMillis() - sent;
        MessageExt got = inbox.all().get(1);
        Env.check(waited >= 1900, "came after " + waited + " ms");
        Env.equal("topic", topic, got.getTopic());
    }
}
