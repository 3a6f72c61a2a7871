#!/usr/bin/env python3
"""java_quickstart.py NAMESRV [CONSUMER_NAMESRV]: RocketMQ's quickstart classes, by name and as they are.

`org.apache.rocketmq.example.quickstart.Producer` sends its 1000 messages, then `.Consumer` of the
same package must receive exactly those. They use the topic TopicTest: give a name server whose
brokers nobody else sends to it. The consumer may ask another name server than the producer.
"""

import re
import sys

import cluster as e2e
import java

# What the producer sends. Source: MESSAGE_COUNT of the class.
MESSAGES = 1000

# Longest time for either program; it needs a few seconds. A consumer whose first heartbeat comes
# late is refused by a Java broker until the next one, 30 s later. Unit: seconds.
PROGRAM_TIMEOUT = 180

# The client gives its first answer 3 s, in which it also loads its classes: on a machine that does
# much else it may give up by itself. The class then prints the exception and goes on without that
# message.
ATTEMPTS = 2

SENT = re.compile(r"^SendResult \[sendStatus=(\w+), msgId=([0-9A-F]+), .*\bbrokerName=([^,\]]+),", re.MULTILINE)
RECEIVED = re.compile(r"\bUNIQ_KEY=([0-9A-F]+)")


def run(checks):
    if len(sys.argv) not in (2, 3):
        raise e2e.Broken("usage: java_quickstart.py NAMESRV [CONSUMER_NAMESRV]")
    java.prepare()
    with e2e.temporary_folder() as folder:
        send_and_receive(checks, folder, sys.argv[1], sys.argv[-1])


def send_and_receive(checks, folder, name_server, consumer_name_server):
    """Runs both programs; returns the names of the brokers that the messages went to."""
    stored = {}
    for attempt in range(ATTEMPTS):
        code, results, text = produce(folder, f"quickstart-producer-{attempt}", name_server)
        sent = {key: broker for status, key, broker in results if status == "SEND_OK"}
        stored.update(sent)
        if code == 0 and len(sent) == MESSAGES:
            break
        failure = re.search(r"^\S*(?:Exception|Error).*", text, re.MULTILINE)
        print(f"quickstart Producer: {len(sent)} stored, exit code {code}, {failure.group(0) if failure else text}")
    checks.check(
        code == 0 and len(sent) == MESSAGES,
        f"quickstart Producer: {MESSAGES} messages, all SEND_OK",
        f"exit code {code}, {len(sent)} stored",
    )
    received = consume(folder, consumer_name_server, set(stored))
    # Messages of an attempt that failed may be stored although the producer was not told.
    unknown = len(received - set(stored)) if attempt == 0 else 0
    missing = len(set(stored) - received)
    checks.check(
        missing == 0 and unknown == 0,
        f"quickstart Consumer: the same {len(stored)} messages" + (" and no other" if attempt == 0 else ""),
        f"{missing} missing, {unknown} never sent",
    )
    return set(stored.values())


def produce(folder, name, name_server):
    """Runs the producer; its exit code, what it printed as (status, message id, broker name) and all it printed."""
    producer = java.example(folder, name, "quickstart.Producer", name_server)
    try:
        code = producer.await_end(PROGRAM_TIMEOUT)
    finally:
        producer.stop()
    text = producer.text()
    return code, SENT.findall(text), text


def consume(folder, name_server, expected):
    """Runs the consumer until it has printed all expected message ids; returns those it printed."""
    consumer = java.example(folder, "quickstart-consumer", "quickstart.Consumer", name_server)

    def has_all():
        consumer.must_run()
        return expected <= set(RECEIVED.findall(consumer.text()))

    try:
        e2e.await_that("the quickstart Consumer to get all messages", PROGRAM_TIMEOUT, has_all)
    except e2e.Broken as broken:
        print(broken)
    finally:
        consumer.stop()
    return set(RECEIVED.findall(consumer.text()))


if __name__ == "__main__":
    e2e.main(run)
