import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;

/** Makes three calls with java.net.http and prints what came of them. It asks for HTTP/2 by Upgrade, as is its default. */
public class Client {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        String base = "http://" + arguments[0];
        int allowed = call(client, HttpRequest.newBuilder(URI.create(base + "/ok")).GET()).statusCode();
        int denied = call(client, HttpRequest.newBuilder(URI.create(base + "/denied")).GET()).statusCode();
        HttpResponse<String> posted =
            call(client, HttpRequest.newBuilder(URI.create(base + "/submit")).POST(BodyPublishers.ofString("a body")));
        System.out.printf("{\"allowed\": %d, \"denied\": %d, \"posted\": %d, \"echo\": \"%s\", \"peer\": null}%n",
            allowed, denied, posted.statusCode(), posted.body());
    }

    static HttpResponse<String> call(HttpClient client, HttpRequest.Builder request) throws Exception {
        return client.send(request.build(), BodyHandlers.ofString());
    }
}
