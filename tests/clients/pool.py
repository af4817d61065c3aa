"""Python's http.client with a pool, as urllib3 has one: before a connection is used again it is looked whether the server has
closed it. pool.py <host> <port> <connections> <pause in seconds>

Each round sends a request over every connection, then pauses. Ends when told `stop`, and says how it went."""

import http.client
import json
import select
import sys
import threading
import time

host, port, size, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
ok, opened, errors = [0] * size, [0] * size, []


def client(index):
    connection = http.client.HTTPConnection(host, port, timeout=20)
    while not stop.is_set():
        try:
            if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
                connection.close()
            opened[index] += connection.sock is None
            connection.request("GET", "/")
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status
            ok[index] += 1
            if ok[index] == 1:
                print("connected", flush=True)
        except Exception as error:
            errors.append(repr(error))
            connection.close()
        time.sleep(pause)


threads = [threading.Thread(target=client, args=(index,)) for index in range(size)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(f"ok={sum(ok)} opened={sum(opened)} failed={len(errors)} {json.dumps(errors)} end", flush=True)
