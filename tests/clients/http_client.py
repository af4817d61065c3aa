"""Python's http.client: two requests over one connection, the second with a body. http_client.py <host> <port>"""

import http.client
import json
import sys

connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=10)
connection.request("GET", "/", headers={"x-mse-tag": "gray"})
answer = json.load(connection.getresponse())
body = bytes(range(256)) * 4096
connection.request("POST", "/echo", body=iter([body[:1000], body[1000:]]), encode_chunked=True,
                   headers={"transfer-encoding": "chunked"})
response = connection.getresponse()
echoed = response.read()
print(json.dumps({"answer": answer, "echoed": echoed == body, "status": response.status}))
