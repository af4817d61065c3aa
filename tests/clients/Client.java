import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;

/** Java's HttpClient in the version it chooses itself: over HTTP/1.1 it offers an upgrade to HTTP/2 (h2c). */
class Client {
    public static void main(String[] args) throws Exception {
        var client = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(10)).build();
        var get = HttpRequest.newBuilder(URI.create(args[0])).header("x-mse-tag", "gray").build();
        var answer = client.send(get, BodyHandlers.ofString());
        var body = "0123456789".repeat(50_000);
        var post = HttpRequest.newBuilder(URI.create(args[0] + "/echo")).POST(BodyPublishers.ofString(body)).build();
        var echo = client.send(post, BodyHandlers.ofString());
        System.out.printf(
            "{\"answer\": %s, \"echoed\": %b, \"status\": %d, \"version\": \"%s\"}%n",
            answer.body(), echo.body().equals(body), echo.statusCode(), echo.version());
    }
}
