// A service in the middle that passes on the ids of traces and nothing else: java Relay.java <kind> <port> <next host> <next port>
//
// `pool`: the JDK's server with 64 threads, each of which waits for the next service. `classic`: the same with the older of the JDK's
// clients, which writes and reads in the thread that calls it. `virtual`: that with a virtual thread for each request. `async`: as `pool` with a callback for what the
// next service answers, which comes in another thread. Connections are kept open on both sides. What the next service answers is the answer.
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.concurrent.Executor;
import java.util.concurrent.Executors;

class Relay {
    static final String[] PASSED_ON = {"traceparent", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled"};

    public static void main(String[] args) throws Exception {
        String kind = args[0];
        URI next = URI.create("http://" + args[2] + ":" + args[3] + "/");
        Executor executor = kind.equals("virtual")
            ? (Executor) Executors.class.getMethod("newVirtualThreadPerTaskExecutor").invoke(null)
            : Executors.newFixedThreadPool(64);
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        HttpServer server = HttpServer.create(new InetSocketAddress("0.0.0.0", Integer.parseInt(args[1])), 512);
        server.setExecutor(executor);
        server.createContext("/", exchange -> {
            if (kind.equals("classic") || kind.equals("virtual")) {
                answer(exchange, 200, ((HttpURLConnection) next.toURL().openConnection()).getInputStream().readAllBytes());
                return;
            }
            HttpRequest.Builder request = HttpRequest.newBuilder(next);
            for (String name : PASSED_ON) {
                String value = exchange.getRequestHeaders().getFirst(name);
                if (value != null) {
                    request.header(name, value);
                }
            }
            if (kind.equals("async")) {
                client.sendAsync(request.build(), HttpResponse.BodyHandlers.ofByteArray())
                    .whenComplete((response, error) -> answer(exchange, error == null ? response : null));
                return;
            }
            try {
                answer(exchange, client.send(request.build(), HttpResponse.BodyHandlers.ofByteArray()));
            } catch (InterruptedException | IOException error) {
                answer(exchange, null);
            }
        });
        server.start();
        System.out.println("listening");
    }

    static void answer(HttpExchange exchange, HttpResponse<byte[]> response) {
        answer(exchange, response == null ? 500 : response.statusCode(), response == null ? new byte[0] : response.body());
    }

    static void answer(HttpExchange exchange, int status, byte[] body) {
        try {
            exchange.sendResponseHeaders(status, body.length == 0 ? -1 : body.length);
            exchange.getResponseBody().write(body);
        } catch (IOException gone) {
            // The client has left.
        } finally {
            exchange.close();
        }
    }
}
