"""A client that knows its service's instances from a registry, and balances by itself.

registry_client.py <instances> [<header>: <value>]: instances are host:port, with commas between them. Each instance has a pool of
connections that are kept, each request goes to the next instance in turn. Reads a number of requests from each line of standard
input, and answers with JSON in a line: by the instance that was called, who answered how often; then with the line's number.
"""

import collections
import http.client
import itertools
import json
import sys

instances = sys.argv[1].split(",")
headers = dict(line.split(": ", 1) for line in sys.argv[2:])
pools = {instance: [] for instance in instances}
turn = itertools.cycle(instances)


def ask(instance):
    pool = pools[instance]
    connection = pool.pop() if pool else http.client.HTTPConnection(instance, timeout=10)
    try:
        connection.request("GET", "/", headers=headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return type(error).__name__
    if response.will_close:
        connection.close()
    else:
        pool.append(connection)
    if response.status != 200:
        return f"{response.status} {response.headers.get('x-sluice-reason', '')}"
    return json.loads(body)["chain"][0]["version"]


for number, line in enumerate(sys.stdin, 1):
    answers = collections.defaultdict(collections.Counter)
    for _ in range(int(line)):
        instance = next(turn)
        answers[instance][ask(instance)] += 1
    print(json.dumps(answers), "answered", number, flush=True)
