import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import org.eclipse.jetty.io.Content;
import org.eclipse.jetty.server.Handler;
import org.eclipse.jetty.server.HttpConfiguration;
import org.eclipse.jetty.server.HttpConnectionFactory;
import org.eclipse.jetty.server.Request;
import org.eclipse.jetty.server.Response;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.util.Callback;
import org.eclipse.jetty.util.thread.QueuedThreadPool;

/** Jetty. See tests/programs/calls.py: JettyServer PORT CONTENT */
class JettyServer {
    public static void main(String[] words) throws Exception {
        Path content = Path.of(words[1]);
        var server = new Server(new QueuedThreadPool(16));
        var connector = new ServerConnector(server, new HttpConnectionFactory(new HttpConfiguration()));
        connector.setHost("127.0.0.1");
        connector.setPort(Integer.parseInt(words[0]));
        connector.setIdleTimeout(60_000);
        server.addConnector(connector);
        server.setHandler(new Handler.Abstract() {
            @Override
            public boolean handle(Request request, Response response, Callback callback) throws Exception {
                answer(request, response, content);
                callback.succeeded();
                return true;
            }
        });
        server.start();
        server.join();
    }

    private static void answer(Request request, Response response, Path content) throws Exception {
        String[] path = request.getHttpURI().getPath().split("/");
        if (path[1].equals("early")) {
            say(response, 413, "no");
        } else if (request.getMethod().equals("POST")) {
            say(response, 200, Bodies.told(Content.Source.asInputStream(request), path[1].equals("slow")));
        } else {
            Path file = content.resolve(path[2]);
            if (path[1].equals("down")) response.getHeaders().put("Content-Length", Files.size(file));
            try (OutputStream to = Content.Sink.asOutputStream(response)) {
                if (path[1].equals("chunked")) to.flush();
                Files.copy(file, to);
            }
        }
    }

    private static void say(Response response, int status, String text) throws Exception {
        response.setStatus(status);
        response.getHeaders().put("Content-Length", text.length());
        try (OutputStream to = Content.Sink.asOutputStream(response)) {
            to.write(text.getBytes());
        }
    }
}
