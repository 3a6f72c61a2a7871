package compat;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** Transactions and request-reply: beyond the standard list. */
final class Further {
    private Further() {
    }

    static void addTo(Scenarios to) {
        to.more("transaction", env -> transaction(env, false));
        to.more("transaction-check", env -> transaction(env, true));
        to.more("request-reply", Further::requestReply);
    }

    /** Without checks: commit and rollback. With checks: undecided ones are asked for and then decided. */
    private static void transaction(Env env, boolean undecided) throws Exception {
        String topic = env.topic("tx");
        DefaultMQProducer plain = env.producer();
        env.createTopic(plain, topic, 2);
        AtomicInteger checks = new AtomicInteger();
        TransactionMQProducer producer = new TransactionMQProducer(env.group("tx"));
        producer.setNamesrvAddr(env.namesrv());
        producer.setTransactionListener(new TransactionListener() {
            @Override
            public LocalTransactionState executeLocalTransaction(Message message, Object arg) {
                return undecided ? LocalTransactionState.UNKNOW : decide(message);
            }

            @Override
            public LocalTransactionState checkLocalTransaction(MessageExt message) {
                checks.incrementAndGet();
                return decide(message);
            }

            private LocalTransactionState decide(Message message) {
                return message.getTags().equals("yes")
                    ? LocalTransactionState.COMMIT_MESSAGE
                    : LocalTransactionState.ROLLBACK_MESSAGE;
            }
        });
        producer.start();
        env.closing(producer::shutdown);
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = env.pushConsumer(env.group("txc"), topic, "*");
        consumer.registerMessageListener(inbox.concurrently());
        consumer.start();
        Set<String> want = new TreeSet<>();
        for (int i = 0; i < 10; i++) {
            String tag = i % 2 == 0 ? "yes" : "no";
            String body = Env.numberedOne(tag, i);
            SendResult result = producer.sendMessageInTransaction(new Message(topic, tag, "k" + i, Env.bytes(body)), null);
            Env.equal("send status", SendStatus.SEND_OK, result.getSendStatus());
            if (i % 2 == 0) {
                want.add(body);
            }
        }
        Env.await("the committed messages", undecided ? 150 : Env.DELIVERY, () -> inbox.distinct().containsAll(want));
        if (undecided) {
            Env.await("a check for every message", 150, () -> checks.get() >= 10);
        }
        Env.sendOk(plain.send(new Message(topic, Env.bytes("last"))));
        Env.await("the last message", Env.DELIVERY, () -> inbox.distinct().contains("last"));
        want.add("last");
        Env.equal("committed only", want, inbox.distinct());
    }

    private static void requestReply(Env env) throws Exception {
        String topic = env.topic("rpc");
        DefaultMQProducer producer = env.producer();
        env.createTopic(producer, topic, 1);
        DefaultMQProducer replier = env.producer();
        DefaultMQPushConsumer consumer = env.pushConsumer(env.group("rpc"), topic, "*");
        List<Throwable> problems = Collections.synchronizedList(new ArrayList<>());
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            for (MessageExt message : batch) {
                try {
                    replier.send(MessageUtil.createReplyMessage(message, Env.bytes("re: " + Env.text(message.getBody()))));
                } catch (Exception e) {
                    problems.add(e);
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        env.awaitQueues(consumer, topic, 1);
        Message answer = producer.request(new Message(topic, Env.bytes("question")), 60_000);
        Env.equal("problems while replying", Collections.emptyList(), problems);
        Env.equal("answer", "re: question", Env.text(answer.getBody()));
    }
}
