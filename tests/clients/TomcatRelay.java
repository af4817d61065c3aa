// A servlet in the middle that passes on nothing: java -cp <Tomcat's jars> TomcatRelay.java <kind> <port> <next host> <next port>
//
// `sync`: Tomcat with 64 threads, each of which waits for the next service. `async`: the servlet lets go of its thread, and another
// one answers. `mixed`: the first for `/`, the second for `/async`. What the next service answers is the answer.
import jakarta.servlet.AsyncContext;
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.io.InputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.URL;
import java.nio.file.Files;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.apache.catalina.Context;
import org.apache.catalina.startup.Tomcat;

class TomcatRelay {
    public static void main(String[] args) throws Exception {
        String kind = args[0];
        URL next = URI.create("http://" + args[2] + ":" + args[3] + "/").toURL();
        ExecutorService others = Executors.newFixedThreadPool(64);
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(Files.createTempDirectory("tomcat").toString());
        tomcat.setPort(Integer.parseInt(args[1]));
        tomcat.getConnector().setProperty("maxThreads", "64");
        tomcat.getConnector().setProperty("maxKeepAliveRequests", "-1");
        Context context = tomcat.addContext("", null);
        Tomcat.addServlet(context, "relay", new HttpServlet() {
            @Override
            protected void doGet(HttpServletRequest request, HttpServletResponse response) throws IOException {
                if (kind.equals("sync") || kind.equals("mixed") && !request.getRequestURI().equals("/async")) {
                    answer(response, ask(next));
                    return;
                }
                AsyncContext later = request.startAsync();
                others.execute(() -> {
                    try {
                        answer((HttpServletResponse) later.getResponse(), ask(next));
                    } catch (IOException gone) {
                        // The client has left.
                    } finally {
                        later.complete();
                    }
                });
            }
        }).setAsyncSupported(true);
        context.addServletMappingDecoded("/*", "relay");
        tomcat.start();
        System.out.println("listening");
    }

    static byte[] ask(URL next) throws IOException {
        HttpURLConnection connection = (HttpURLConnection) next.openConnection();
        try (InputStream body = connection.getInputStream()) {
            return body.readAllBytes();
        }
    }

    static void answer(HttpServletResponse response, byte[] body) throws IOException {
        response.setContentLength(body.length);
        response.getOutputStream().write(body);
        response.flushBuffer();
    }
}
