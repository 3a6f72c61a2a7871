package compat;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.MessageClientExt;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * Drain NAMESRV GROUP TOPIC COUNT SECONDS
 *
 * Consumes until COUNT messages came or SECONDS passed, prints {@code queueId queueOffset offsetMessageId body}
 * for each, commits and leaves. Exits with 1 when fewer came.
 */
public final class Drain {
    private Drain() {
    }

    public static void main(String[] args) throws Exception {
        if (args.length != 5) {
            System.err.println("usage: Drain NAMESRV GROUP TOPIC COUNT SECONDS");
            System.exit(2);
        }
        CountDownLatch open = new CountDownLatch(Integer.parseInt(args[3]));
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(args[1]);
        consumer.setNamesrvAddr(args[0]);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(args[2], "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            for (MessageExt message : batch) {
                synchronized (open) {
                    System.out.println(message.getQueueId() + " " + message.getQueueOffset() + " "
                        + ((MessageClientExt) message).getOffsetMsgId() + " " + Env.text(message.getBody()));
                    open.countDown();
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.setAwaitTerminationMillisWhenShutdown(10_000);
        consumer.start();
        boolean all = open.await(Long.parseLong(args[4]), TimeUnit.SECONDS);
        consumer.shutdown();
        System.exit(all ? 0 : 1);
    }
}
