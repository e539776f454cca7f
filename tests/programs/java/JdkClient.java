import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.URL;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.HexFormat;

/** The HTTP clients that come with Java, told what to do as clients.py describes: JdkClient HttpClient|HttpURLConnection BASE CONTENT */
class JdkClient {
    private static HttpClient client;

    public static void main(String[] words) throws IOException, InterruptedException {
        boolean old = words[0].equals("HttpURLConnection");
        var lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = lines.readLine()) != null; ) {
            String[] call = line.split(" ");
            if (call[0].equals("new")) {
                client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
                continue;
            }
            Path file = call.length > 2 ? Path.of(words[2], call[2]) : null;
            boolean chunked = call.length > 3 && call[3].equals("chunked");
            try {
                System.out.println(old ? byConnection(call[0], words[1] + call[1], file, chunked) : byClient(call[0], words[1] + call[1], file, chunked));
            } catch (IOException error) {
                System.out.println("error " + error.toString().replace(' ', '_'));
            }
            System.out.flush();
        }
        System.exit(0);
    }

    private static String byClient(String method, String url, Path file, boolean chunked) throws IOException, InterruptedException {
        BodyPublisher body = BodyPublishers.noBody();
        if (file != null) {
            body = chunked ? BodyPublishers.ofInputStream(() -> open(file)) : BodyPublishers.ofFile(file);
        }
        var request = HttpRequest.newBuilder(URI.create(url)).method(method, body).build();
        var reply = client.send(request, HttpResponse.BodyHandlers.ofInputStream());
        return answer(reply.statusCode(), reply.body());
    }

    private static String byConnection(String method, String url, Path file, boolean chunked) throws IOException {
        var connection = (HttpURLConnection) new URL(url).openConnection();
        connection.setRequestMethod(method);
        if (file != null) {
            connection.setDoOutput(true);
            if (chunked) connection.setChunkedStreamingMode(0);
            else connection.setFixedLengthStreamingMode(Files.size(file));
            try (OutputStream to = connection.getOutputStream()) {
                Files.copy(file, to);
            }
        }
        int status = connection.getResponseCode();
        InputStream got = status < 400 ? connection.getInputStream() : connection.getErrorStream();
        return answer(status, got == null ? InputStream.nullInputStream() : got);
    }

    private static InputStream open(Path file) {
        try {
            return Files.newInputStream(file);
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
    }

    private static String answer(int status, InputStream body) throws IOException {
        MessageDigest digest = Bodies.sha256();
        long length = 0;
        byte[] buffer = new byte[65536];
        try (body) {
            for (int got; (got = body.read(buffer)) >= 0; length += got) digest.update(buffer, 0, got);
        }
        return status + " " + length + " " + HexFormat.of().formatHex(digest.digest());
    }
}
