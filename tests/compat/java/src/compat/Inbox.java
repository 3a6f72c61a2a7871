package compat;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.common.message.MessageExt;

/** Everything a consumer was given, in the order of arrival. */
final class Inbox {
    private final List<MessageExt> messages = new ArrayList<>();

    synchronized void add(List<MessageExt> more) {
        messages.addAll(more);
    }

    synchronized List<MessageExt> all() {
        return new ArrayList<>(messages);
    }

    synchronized int size() {
        return messages.size();
    }

    List<String> bodies() {
        List<String> out = new ArrayList<>();
        for (MessageExt message : all()) {
            out.add(Env.text(message.getBody()));
        }
        return out;
    }

    Set<String> distinct() {
        return new TreeSet<>(bodies());
    }

    Map<Integer, List<String>> byQueue() {
        Map<Integer, List<String>> out = new TreeMap<>();
        for (MessageExt message : all()) {
            out.computeIfAbsent(message.getQueueId(), q -> new ArrayList<>()).add(Env.text(message.getBody()));
        }
        return out;
    }

    MessageListenerConcurrently concurrently() {
        return (batch, context) -> {
            add(batch);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        };
    }

    MessageListenerOrderly orderly() {
        return (batch, context) -> {
            add(batch);
            return ConsumeOrderlyStatus.SUCCESS;
        };
    }
}
