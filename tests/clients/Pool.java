import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.util.ArrayList;
import java.util.concurrent.CompletableFuture;

/**
 * Java's HttpClient, which keeps connections. Pool.java &lt;host> &lt;port> &lt;connections> &lt;pause in seconds>. Each round sends
 * as many requests at once, then pauses. Ends when told `stop`, and says how it went.
 */
class Pool {
    static volatile boolean stopped;

    public static void main(String[] args) throws Exception {
        var reader = new Thread(() -> {
            try {
                System.in.read();
            } catch (java.io.IOException gone) {
            }
            stopped = true;
        });
        reader.setDaemon(true);
        reader.start();
        var client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1)
            .connectTimeout(Duration.ofSeconds(10)).build();
        var request = HttpRequest.newBuilder(URI.create("http://" + args[0] + ":" + args[1] + "/")).build();
        var size = Integer.parseInt(args[2]);
        int ok = 0;
        var errors = new ArrayList<String>();
        for (boolean first = true; !stopped; first = false) {
            var sent = new ArrayList<CompletableFuture<Integer>>();
            for (int i = 0; i < size; i++) {
                sent.add(client.sendAsync(request, BodyHandlers.ofString()).thenApply(answer -> answer.statusCode()));
            }
            for (var one : sent) {
                try {
                    int status = one.get();
                    if (status == 200) ok++;
                    else errors.add("" + status);
                } catch (Exception error) {
                    errors.add(error.toString());
                }
            }
            if (first) System.out.println("connected\n".repeat(size));
            Thread.sleep((long) (Double.parseDouble(args[3]) * 1000));
        }
        System.out.printf("ok=%d opened=? failed=%d %s end%n", ok, errors.size(), errors);
        System.exit(0);
    }
}
