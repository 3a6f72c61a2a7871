#!/usr/bin/env python3
"""Records remoting frames between clients and servers as fixtures.

  relay.py record FRAMES LISTEN=TARGET...   relay host:port pairs, append one JSON line per frame
  relay.py pick   FRAMES FOLDER             choose one exchange per code, write FOLDER/*.hex

A .hex file has '#' comment lines and, for each frame, one line of hex: the request, then its answer.
"""
import json
import socket
import struct
import sys
import threading

# file name -> (request code, wanted answer code or None for no answer[, bytes the request contains])
WANTED = {
    "send-310": (310, 0),
    "send-batch-320": (320, 0),
    "pull-11-found": (11, 0),
    "pull-11-nothing": (11, 19),
    "pull-lite-361-found": (361, 0),
    "query-offset-14-found": (14, 0),
    "query-offset-14-unknown": (14, 22),
    "update-offset-15": (15, None),
    "max-offset-30": (30, 0),
    "min-offset-31": (31, 0),
    "search-offset-29": (29, 0),
    "view-message-33": (33, 0),
    "query-message-12": (12, 0),
    "heartbeat-34-producer": (34, 0, b'"consumerDataSet":[]'),
    "heartbeat-34-consumer": (34, 0, b'"CONSUME_PASSIVELY"'),
    "unregister-35": (35, 0),
    "send-back-36": (36, 0),
    "end-transaction-37": (37, None),
    "consumer-list-38": (38, 0),
    "consumers-changed-40": (40, None),
    "lock-41": (41, 0),
    "unlock-42": (42, 0),
    "create-topic-17": (17, 0),
    "register-broker-103": (103, 0),
    "unregister-broker-104": (104, 0),
    "route-105": (105, 0),
    "route-105-unknown": (105, 17),
    "cluster-106": (106, 0),
    "topic-list-206": (206, 0),
    "topic-stats-202": (202, 0),
    "consume-stats-208": (208, 0),
    "reset-offset-222": (222, 0),
    "delete-topic-broker-215": (215, 0),
    "delete-topic-namesrv-216": (216, 0),
}


def read_exactly(sock, count):
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            return None
        data += more
    return data


class Recorder:
    def __init__(self, path):
        self.lock = threading.Lock()
        self.file = open(path, "a")
        self.connections = 0

    def pump(self, source, target, connection, direction):
        try:
            while True:
                head = read_exactly(source, 4)
                rest = head and read_exactly(source, struct.unpack(">I", head)[0])
                if not rest:
                    break
                with self.lock:
                    self.file.write(json.dumps([connection, direction, (head + rest).hex()]) + "\n")
                    self.file.flush()
                target.sendall(head + rest)
        except OSError:
            pass
        for sock in (source, target):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def serve(self, listener, target):
        while True:
            client, _ = listener.accept()
            try:
                server = socket.create_connection(target)
            except OSError:
                client.close()
                continue
            self.connections += 1
            for source, sink, direction in ((client, server, ">"), (server, client, "<")):
                threading.Thread(target=self.pump, args=(source, sink, self.connections, direction), daemon=True).start()


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def record(path, pairs):
    recorder = Recorder(path)
    threads = []
    for pair in pairs:
        listen, target = pair.split("=")
        listener = socket.create_server(address(listen), backlog=64)
        threads.append(threading.Thread(target=recorder.serve, args=(listener, address(target)), daemon=True))
    for thread in threads:
        thread.start()
    threads[0].join()


def header(frame):
    length = struct.unpack(">I", frame[4:8])[0]
    return json.loads(frame[8:8 + (length & 0xFFFFFF)]) if length >> 24 == 0 else None


def pick(path, folder):
    waiting, best = {}, {}
    for line in open(path):
        connection, direction, text = json.loads(line)
        frame = bytes.fromhex(text)
        head = header(frame)
        if head is None:
            continue
        if not head["flag"] & 1:
            waiting[connection, direction, head["opaque"]] = (head, text)
            if head["flag"] & 2:
                offer(best, head, text, None, None, direction)
            continue
        asked = waiting.pop((connection, "<" if direction == ">" else ">", head["opaque"]), None)
        if asked:
            offer(best, asked[0], asked[1], head, text, direction)
    for name, (_, request, request_text, answer, answer_text, from_broker) in sorted(best.items()):
        with open(f"{folder}/{name}.hex", "w") as out:
            kind = "oneway" if request["flag"] & 2 else "request"
            sender = ", sent by the server" if from_broker else ""
            out.write(f"# {kind}: code {request['code']}, opaque {request['opaque']}{sender}\n{request_text}\n")
            if answer:
                out.write(f"# answer: code {answer['code']}, opaque {answer['opaque']}\n{answer_text}\n")
    for name in WANTED:
        if name not in best:
            print("not seen:", name)


def offer(best, request, request_text, answer, answer_text, direction):
    for name, (code, result, *contained) in WANTED.items():
        if contained and contained[0] not in bytes.fromhex(request_text):
            continue
        if request["code"] != code or (answer is None) != (result is None):
            continue
        if answer is not None and answer["code"] != result:
            continue
        size = len(request_text) + len(answer_text or "")
        if name not in best or size < best[name][0]:
            from_server = direction == (">" if answer else "<")
            best[name] = (size, request, request_text, answer, answer_text, from_server)


if __name__ == "__main__":
    if len(sys.argv) >= 4 and sys.argv[1] == "record":
        record(sys.argv[2], sys.argv[3:])
    elif len(sys.argv) == 4 and sys.argv[1] == "pick":
        pick(sys.argv[2], sys.argv[3])
    else:
        sys.exit(__doc__)
