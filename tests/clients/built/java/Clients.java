import io.netty.bootstrap.Bootstrap;
import io.netty.buffer.ByteBuf;
import io.netty.buffer.Unpooled;
import io.netty.channel.*;
import io.netty.channel.nio.NioEventLoopGroup;
import io.netty.channel.socket.SocketChannel;
import io.netty.channel.socket.nio.NioSocketChannel;
import io.netty.handler.proxy.*;
import io.netty.resolver.NoopAddressResolverGroup;
import java.net.*;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import okhttp3.Credentials;
import okhttp3.OkHttpClient;
import org.apache.hc.client5.http.auth.AuthScope;
import org.apache.hc.client5.http.auth.UsernamePasswordCredentials;
import org.apache.hc.client5.http.classic.methods.HttpGet;
import org.apache.hc.client5.http.impl.auth.BasicCredentialsProvider;
import org.apache.hc.client5.http.impl.classic.HttpClients;
import org.apache.hc.client5.http.impl.io.PoolingHttpClientConnectionManagerBuilder;
import org.apache.hc.core5.http.HttpHost;
import org.apache.hc.core5.http.io.SocketConfig;
import org.apache.hc.core5.http.io.entity.EntityUtils;

/** Fetches a page: LIBRARY, SOCKS4a|SOCKS5|HTTP|password, the proxy's port, perhaps a login, the page. */
class Clients {
    public static void main(String[] words) throws Exception {
        String what = words[1];
        int port = Integer.parseInt(words[2]);
        String name = words.length > 4 ? words[3] : null, password = name == null ? null : words[4];
        URI page = URI.create(words[words.length - 1]);
        var at = new InetSocketAddress("127.0.0.1", port);
        if (name != null) {
            Authenticator.setDefault(new Authenticator() {
                protected PasswordAuthentication getPasswordAuthentication() {
                    return new PasswordAuthentication(name, password.toCharArray());
                }
            });
        }
        var kind = what.equals("HTTP") || (what.equals("password") && words[0].equals("OkHttp"))
            ? Proxy.Type.HTTP : Proxy.Type.SOCKS;
        var proxy = new Proxy(kind, at);
        switch (words[0]) {
            case "java.net.Socket" -> {
                try (var socket = new Socket(proxy)) {
                    socket.connect(InetSocketAddress.createUnresolved(page.getHost(), page.getPort()));
                    socket.getOutputStream().write("GET /found.txt HTTP/1.0\r\n\r\n".getBytes());
                    System.out.println(new String(socket.getInputStream().readAllBytes()));
                }
            }
            case "HttpURLConnection" -> System.out.println(
                new String(page.toURL().openConnection(proxy).getInputStream().readAllBytes()));
            case "java.net.http" -> System.out.println(java.net.http.HttpClient.newBuilder()
                .proxy(ProxySelector.of(at)).build()
                .send(HttpRequest.newBuilder(page).build(), HttpResponse.BodyHandlers.ofString()).body());
            case "OkHttp" -> {
                var client = new OkHttpClient.Builder().proxy(proxy);
                if (name != null) {
                    client.proxyAuthenticator((route, response) -> response.request().newBuilder()
                        .header("Proxy-Authorization", Credentials.basic(name, password)).build());
                }
                var request = new okhttp3.Request.Builder().url(page.toString()).build();
                System.out.println(client.build().newCall(request).execute().body().string());
                System.exit(0);
            }
            case "Apache HttpClient" -> apache(what, port, name, password, page);
            case "Netty" -> netty(what, at, name, password, page);
            default -> throw new IllegalArgumentException(words[0]);
        }
    }

    static void apache(String what, int port, String name, String password, URI page) throws Exception {
        var builder = HttpClients.custom();
        if (what.equals("SOCKS5")) {
            builder.setConnectionManager(PoolingHttpClientConnectionManagerBuilder.create()
                .setDefaultSocketConfig(SocketConfig.custom()
                    .setSocksProxyAddress(new InetSocketAddress("127.0.0.1", port)).build()).build());
        } else {
            var host = new HttpHost("127.0.0.1", port);
            builder.setProxy(host);
            if (name != null) {
                var credentials = new BasicCredentialsProvider();
                credentials.setCredentials(new AuthScope(host),
                    new UsernamePasswordCredentials(name, password.toCharArray()));
                builder.setDefaultCredentialsProvider(credentials);
            }
        }
        try (var client = builder.build()) {
            String body = client.execute(new HttpGet(page),
                response -> EntityUtils.toString(response.getEntity()));
            System.out.println(body);
        }
    }

    static void netty(String what, InetSocketAddress at, String name, String password, URI page) throws Exception {
        var group = new NioEventLoopGroup(1);
        ProxyHandler handler = switch (what) {
            case "SOCKS4a" -> new Socks4ProxyHandler(at);
            case "HTTP" -> new HttpProxyHandler(at);
            case "SOCKS5" -> new Socks5ProxyHandler(at);
            default -> new Socks5ProxyHandler(at, name, password);
        };
        var channel = new Bootstrap().group(group).channel(NioSocketChannel.class)
            .resolver(NoopAddressResolverGroup.INSTANCE)
            .handler(new ChannelInitializer<SocketChannel>() {
                protected void initChannel(SocketChannel made) {
                    made.pipeline().addLast(handler, new SimpleChannelInboundHandler<ByteBuf>() {
                        protected void channelRead0(ChannelHandlerContext context, ByteBuf data) {
                            System.out.println(data.toString(StandardCharsets.UTF_8));
                        }
                    });
                }
            }).connect(InetSocketAddress.createUnresolved(page.getHost(), page.getPort())).sync().channel();
        handler.connectFuture().sync();
        channel.writeAndFlush(Unpooled.copiedBuffer("GET /found.txt HTTP/1.0\r\n\r\n", StandardCharsets.UTF_8));
        channel.closeFuture().sync();
        group.shutdownGracefully();
    }
}
