// Java's own HTTP client with its defaults, which ask for HTTP/2 by an upgrade of the connection.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.Stream;

public class Client {
    private static final HttpClient CLIENT = HttpClient.newHttpClient();
    private static final String BASE = System.getenv("OPENAI_BASE_URL");

    public static void main(String[] checks) throws Exception {
        for (String check : checks) {
            System.out.printf("{\"check\": \"%s\", \"fact\": %s}%n", check, fact(check));
        }
    }

    private static String fact(String check) throws Exception {
        switch (check) {
            case "chat":
                return send(key(), body("")).body();
            case "stream":
                return stream();
            case "wrong_key":
                return status("canopy_wrong_key", body(""));
            case "unknown_model":
                return status(key(), body("").replace(System.getenv("MODEL"), "no-such-model"));
            default:
                throw new IllegalArgumentException(check);
        }
    }

    private static String stream() throws Exception {
        HttpResponse<Stream<String>> answer =
            CLIENT.send(request(key(), body(", \"stream\": true")), HttpResponse.BodyHandlers.ofLines());
        List<String> events =
            answer.body().filter(line -> line.startsWith("data: {")).map(line -> line.substring(6)).collect(Collectors.toList());
        return "[" + String.join(",", events) + "]";
    }

    private static String status(String key, String body) throws Exception {
        HttpResponse<String> answer = send(key, body);
        return "{\"status\": " + answer.statusCode() + ", \"body\": " + answer.body() + "}";
    }

    private static HttpResponse<String> send(String key, String body) throws Exception {
        return CLIENT.send(request(key, body), HttpResponse.BodyHandlers.ofString());
    }

    private static HttpRequest request(String key, String body) {
        return HttpRequest.newBuilder(URI.create(BASE + "/chat/completions"))
            .header("Authorization", "Bearer " + key)
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
    }

    private static String key() {
        return System.getenv("OPENAI_API_KEY");
    }

    private static String body(String more) {
        return "{\"model\": \"" + System.getenv("MODEL") + "\", \"messages\": "
            + "[{\"role\": \"user\", \"content\": \"what goes up must come down\"}]" + more + "}";
    }
}
