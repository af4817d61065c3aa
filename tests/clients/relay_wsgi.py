"""A WSGI application in the middle that passes on nothing, for gunicorn: `relay_wsgi:application`. The next service is what
`NEXT_HOST` and `NEXT_PORT` say, and what it answers is the answer."""

import http.client
import os
import threading

local = threading.local()
print("listening", flush=True)


def application(_environ, start_response):
    connection = getattr(local, "connection", None)
    if connection is None:
        connection = local.connection = http.client.HTTPConnection(
            os.environ["NEXT_HOST"], int(os.environ["NEXT_PORT"]), timeout=20
        )
    connection.request("GET", "/")
    body = connection.getresponse().read()
    start_response("200 OK", [("content-length", str(len(body)))])
    return [body]
