import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.catalina.connector.Connector;
import org.apache.catalina.startup.Tomcat;

/** Tomcat. See tests/programs/calls.py: TomcatServer PORT CONTENT */
class TomcatServer extends HttpServlet {
    private static final long serialVersionUID = 1;
    private static Path content;

    public static void main(String[] words) throws Exception {
        content = Path.of(words[1]);
        Path home = Files.createTempDirectory("tomcat");
        var connector = new Connector();
        connector.setProperty("address", "127.0.0.1");
        connector.setPort(Integer.parseInt(words[0]));
        connector.setProperty("keepAliveTimeout", "60000");
        connector.setProperty("maxKeepAliveRequests", "-1");
        var tomcat = new Tomcat();
        tomcat.setBaseDir(home.toString());
        tomcat.setConnector(connector);
        var context = tomcat.addContext("", null);
        Tomcat.addServlet(context, "all", new TomcatServer());
        context.addServletMappingDecoded("/", "all");
        tomcat.start();
        tomcat.getServer().await();
    }

    @Override
    protected void service(HttpServletRequest request, HttpServletResponse response) throws IOException {
        String[] path = request.getRequestURI().split("/");
        if (path[1].equals("early")) {
            say(response, 413, "no");
        } else if (request.getMethod().equals("POST")) {
            try {
                say(response, 200, Bodies.told(request.getInputStream(), path[1].equals("slow")));
            } catch (InterruptedException error) {
                throw new IOException(error);
            }
        } else {
            Path file = content.resolve(path[2]);
            if (path[1].equals("down")) response.setContentLengthLong(Files.size(file));
            else response.flushBuffer();
            Files.copy(file, response.getOutputStream());
        }
    }

    private static void say(HttpServletResponse response, int status, String text) throws IOException {
        response.setStatus(status);
        response.setContentLength(text.length());
        response.getOutputStream().write(text.getBytes());
    }
}
