// Java's own HTTP server. See tests/servers/__init__.py.
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.concurrent.Executors;

public class Early {
    public static void main(String[] arguments) throws Exception {
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])), 0);
        server.createContext("/", exchange -> {
            var path = exchange.getRequestURI().getPath();
            var early = path.equals("/early");
            var body = (early ? "no" : "EXECUTED").getBytes();
            if (!early) {
                var line = exchange.getRequestMethod() + " " + path + "\n";
                Files.writeString(Path.of(arguments[1]), line, StandardOpenOption.APPEND);
                exchange.getRequestBody().readAllBytes();
            }
            exchange.sendResponseHeaders(early ? 401 : 200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.setExecutor(Executors.newCachedThreadPool());
        server.start();
    }
}
