import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Executors;

/** The HTTP server that comes with Java. See tests/programs/calls.py: JdkServer PORT CONTENT */
class JdkServer {
    public static void main(String[] words) throws IOException {
        System.setProperty("sun.net.httpserver.nodelay", "true");
        Path content = Path.of(words[1]);
        var address = new InetSocketAddress(InetAddress.getLoopbackAddress(), Integer.parseInt(words[0]));
        HttpServer server = HttpServer.create(address, 256);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", exchange -> {
            try (exchange) {
                answer(exchange, content);
            } catch (InterruptedException error) {
                throw new IOException(error);
            }
        });
        server.start();
    }

    private static void answer(HttpExchange exchange, Path content) throws IOException, InterruptedException {
        String[] path = exchange.getRequestURI().getPath().split("/");
        if (path[1].equals("early")) {
            say(exchange, 413, "no");
        } else if (exchange.getRequestMethod().equals("POST")) {
            say(exchange, 200, Bodies.told(exchange.getRequestBody(), path[1].equals("slow")));
        } else {
            Path file = content.resolve(path[2]);
            long size = Files.size(file);
            boolean chunked = path[1].equals("chunked");
            exchange.sendResponseHeaders(200, chunked ? 0 : size == 0 ? -1 : size);
            if (chunked || size > 0) {
                try (InputStream from = Files.newInputStream(file); OutputStream to = exchange.getResponseBody()) {
                    from.transferTo(to);
                }
            }
        }
    }

    private static void say(HttpExchange exchange, int status, String text) throws IOException {
        byte[] bytes = text.getBytes();
        exchange.sendResponseHeaders(status, bytes.length);
        try (OutputStream to = exchange.getResponseBody()) {
            to.write(bytes);
        }
    }
}
