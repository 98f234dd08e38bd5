-- The shops' order database. SQLite; ages are days before today, so that the data never get old.
-- `payment` names the payment at the payment provider; the seed fills it in.

create table orders (
    tenant       text not null,
    number       text not null,
    email        text not null,
    customer     text not null,
    item         text not null,
    total_cents  integer not null check (total_cents > 0),
    currency     text not null check (currency in ('EUR', 'GBP', 'USD')),
    status       text not null check (status in ('packing', 'shipped', 'delivered', 'cancelled')),
    delivered_on text,
    carrier      text not null default '',
    tracking     text not null default '',
    address      text not null,
    payment      text not null default '',
    primary key (tenant, number),
    check ((status = 'delivered') = (delivered_on is not null))
);
create index orders_of_customer on orders (tenant, email);

insert into orders
    (tenant, number, email, customer, item, total_cents, currency, status, delivered_on, carrier, tracking, address)
values
    ('alpenglow', 'AG-1001', 'marta@kowalska.example', 'Marta Kowalska', 'trekking poles', 7990, 'EUR', 'delivered', date('now', '-9 days'), 'DHL', 'JD0146000019', 'Lipowa 4, 30-702 Kraków'),
    ('alpenglow', 'AG-1002', 'j.brunner@bergpost.example', 'Jonas Brunner', 'rain jacket', 14900, 'EUR', 'delivered', date('now', '-5 days'), 'Post CH', '99.60.112233', 'Seestrasse 12, 8002 Zürich'),
    ('alpenglow', 'AG-1003', 's.leclerc@courriel.example', 'Sophie Leclerc', 'head torch', 3990, 'EUR', 'delivered', date('now', '-14 days'), 'La Poste', '6A128812340', '8 rue des Lilas, 69003 Lyon'),
    ('alpenglow', 'AG-1004', 'pablo.ruiz@correo.example', 'Pablo Ruiz', 'backpack, 45 l', 12900, 'EUR', 'shipped', null, 'Correos', 'PK55KV0310', 'Calle Mayor 21, 50001 Zaragoza'),
    ('alpenglow', 'AG-1005', 'emma.huber@netzbrief.example', 'Emma Huber', 'wool socks, 3 pairs', 3450, 'EUR', 'packing', null, '', '', 'Rosenheimer Str. 5, 81667 München'),
    ('alpenglow', 'AG-1006', 't.nilsson@brev.example', 'Tor Nilsson', 'camping stove', 5900, 'EUR', 'shipped', null, 'PostNord', '', 'Storgatan 9, 903 25 Umeå'),
    ('alpenglow', 'AG-1007', 'giulia.conti@posta.example', 'Giulia Conti', 'sleeping bag', 18900, 'EUR', 'delivered', date('now', '-200 days'), 'BRT', 'BR7781220', 'Via Roma 3, 10121 Torino'),
    ('alpenglow', 'AG-1008', 'o.weber@netzbrief.example', 'Otto Weber', 'tent for four', 44900, 'EUR', 'delivered', date('now', '-8 days'), 'DHL', 'JD0146000088', 'Am Hang 1, 87561 Oberstdorf'),
    ('alpenglow', 'AG-1009', 'lena.fischer@alpenmail.example', 'Lena Fischer', 'gaiters', 4400, 'EUR', 'delivered', date('now', '-3 days'), 'Post AT', '1033000912', 'Hauptplatz 7, 8010 Graz'),
    ('alpenglow', 'AG-1010', 'c.moreau@courriel.example', 'Claire Moreau', 'bottle', 2490, 'EUR', 'cancelled', null, '', '', '2 place du Marché, 67000 Strasbourg'),
    ('alpenglow', 'AG-1011', 'anna.nowak@poczta.example', 'Anna Nowak', 'hiking boots', 13900, 'EUR', 'delivered', date('now', '-11 days'), 'InPost', '62000011', 'Długa 10, 80-831 Gdańsk'),
    ('alpenglow', 'AG-1012', 'd.okafor@mail.example', 'David Okafor', 'gloves', 2990, 'EUR', 'packing', null, '', '', '14 Harbour View, Cork T12'),
    ('alpenglow', 'AG-1013', 'rui.silva@correio.example', 'Rui Silva', 'altimeter watch', 21900, 'EUR', 'delivered', date('now', '-4 days'), 'CTT', 'EA1122PT', 'Rua do Ouro 30, 1100-061 Lisboa'),
    ('alpenglow', 'AG-1014', 'h.larsen@post.example', 'Hanne Larsen', 'map set', 3100, 'EUR', 'delivered', date('now', '-6 days'), 'Bring', '7030001', 'Kirkegata 2, 0153 Oslo'),
    ('alpenglow', 'AG-1015', 'f.dubois@courriel.example', 'François Dubois', 'climbing rope', 8400, 'EUR', 'packing', null, '', '', '17 rue Haute, 38000 Grenoble'),

    ('kettle-co', 'KC-2001', 'sarah.jones@post.example', 'Sarah Jones', 'copper kettle', 6400, 'GBP', 'delivered', date('now', '-6 days'), 'Royal Mail', 'RM12GB', '3 Mill Lane, Bath BA1'),
    ('kettle-co', 'KC-2002', 'm.patel@post.example', 'Meera Patel', 'chef''s knife', 8900, 'GBP', 'delivered', date('now', '-12 days'), 'Evri', 'H0021', '88 Park Road, Leicester LE1'),
    ('kettle-co', 'KC-2003', 'laura.garcia@correo.example', 'Laura García', 'frying pan', 4250, 'GBP', 'delivered', date('now', '-7 days'), 'Correos', 'PK61', 'Gran Vía 40, 28013 Madrid'),
    ('kettle-co', 'KC-2004', 'w.kaminski@poczta.example', 'Wojciech Kamiński', 'teapot', 3800, 'GBP', 'shipped', null, 'InPost', '62000442', 'Nowy Świat 15, 00-029 Warszawa'),
    ('kettle-co', 'KC-2005', 'pierre.martin@courriel.example', 'Pierre Martin', 'casserole', 11900, 'GBP', 'packing', null, '', '', '5 quai Nord, 33000 Bordeaux'),
    ('kettle-co', 'KC-2006', 'aisha.hassan@barid.example', 'Aisha Hassan', 'coffee grinder', 7500, 'GBP', 'delivered', date('now', '-10 days'), 'Aramex', '4412009', 'Al Wasl Road 22, Dubai'),
    ('kettle-co', 'KC-2007', 'g.bauer@netzbrief.example', 'Gisela Bauer', 'knife block', 9500, 'GBP', 'delivered', date('now', '-4 days'), 'DHL', 'JD0146000777', 'Lindenallee 20, 04105 Leipzig'),
    ('kettle-co', 'KC-2008', 't.evans@post.example', 'Tom Evans', 'toaster', 5500, 'GBP', 'delivered', date('now', '-90 days'), 'Royal Mail', 'RM88GB', '1 Castle Street, Cardiff CF10'),
    ('kettle-co', 'KC-2009', 'n.ali@mail.example', 'Nadia Ali', 'espresso machine', 62000, 'GBP', 'delivered', date('now', '-3 days'), 'DPD', '1550012', '7 Station Road, Leeds LS1'),
    ('kettle-co', 'KC-2010', 'b.smith@post.example', 'Bob Smith', 'whisk set', 1800, 'GBP', 'delivered', date('now', '-2 days'), 'Evri', 'H0899', '24 Church Street, Norwich NR1'),
    ('kettle-co', 'KC-2011', 'e.rossi@posta.example', 'Elena Rossi', 'moka pot', 2900, 'GBP', 'shipped', null, 'BRT', 'BR120993', 'Corso Garibaldi 9, 20121 Milano'),
    ('kettle-co', 'KC-2012', 'z.horvat@posta.example', 'Zrinka Horvat', 'baking tray', 2200, 'GBP', 'packing', null, '', '', 'Ilica 50, 10000 Zagreb'),
    ('kettle-co', 'KC-2013', 'p.ohara@post.example', 'Pádraig O''Hara', 'kitchen scales', 3300, 'GBP', 'delivered', date('now', '-8 days'), 'An Post', 'CE33IE', '2 Shop Street, Galway H91'),

    ('lumen', 'LU-3001', 'yuki.tanaka@yubin.example', 'Yuki Tanaka', 'desk lamp', 6800, 'USD', 'delivered', date('now', '-5 days'), 'Yamato', '4400-1122', '東京都渋谷区神南1-2-3'),
    ('lumen', 'LU-3002', 'haruto.sato@yubin.example', 'Haruto Sato', 'paper lantern', 4500, 'USD', 'shipped', null, 'Sagawa', '5011-2277', '大阪府大阪市北区梅田2-4-9'),
    ('lumen', 'LU-3003', 'm.dupont@courriel.example', 'Marc Dupont', 'floor lamp', 15900, 'USD', 'delivered', date('now', '-9 days'), 'bpost', '32301', '11 rue Neuve, 1000 Bruxelles'),
    ('lumen', 'LU-3004', 'carlos.mendez@correo.example', 'Carlos Méndez', 'night light', 2100, 'USD', 'delivered', date('now', '-13 days'), 'Estafeta', '9055', 'Av. Juárez 100, 06040 Ciudad de México'),
    ('lumen', 'LU-3005', 'amal.khalil@barid.example', 'Amal Khalil', 'chandelier', 89000, 'USD', 'delivered', date('now', '-6 days'), 'Aramex', '4412777', '15 Nile Street, Cairo'),
    ('lumen', 'LU-3006', 'ben.carter@mail.example', 'Ben Carter', 'bulb pack', 2700, 'USD', 'delivered', date('now', '-1 days'), 'USPS', '9400111', '501 Elm Street, Portland, OR 97205'),
    ('lumen', 'LU-3007', 'ewa.zielinska@poczta.example', 'Ewa Zielińska', 'bedside lamp', 5200, 'USD', 'packing', null, '', '', 'Polna 3, 60-535 Poznań'),
    ('lumen', 'LU-3008', 'k.meyer@netzbrief.example', 'Karl Meyer', 'solar lamp', 3400, 'USD', 'shipped', null, 'DHL', '', 'Deichweg 8, 25899 Niebüll'),
    ('lumen', 'LU-3009', 'tom.baker@mail.example', 'Tom Baker', 'string lights', 3900, 'USD', 'delivered', date('now', '-7 days'), 'UPS', '1Z999AA1', '12 Lake Avenue, Madison, WI 53703'),
    ('lumen', 'LU-3010', 'r.chen@mail.example', 'Rachel Chen', 'LED strip', 3150, 'USD', 'delivered', date('now', '-15 days'), 'USPS', '9400222', '900 Pine Street, Seattle, WA 98101'),
    ('lumen', 'LU-3011', 'l.costa@posta.example', 'Luca Costa', 'wall light', 7700, 'USD', 'packing', null, '', '', 'Via Dante 18, 16121 Genova'),
    ('lumen', 'LU-3012', 'h.kim@mail.example', 'Hana Kim', 'reading lamp', 4800, 'USD', 'delivered', date('now', '-2 days'), 'UPS', '1Z999BB7', '77 Hill Road, Austin, TX 78701'),
    ('lumen', 'LU-3013', 'omar.farouk@barid.example', 'Omar Farouk', 'outdoor lamp', 6600, 'USD', 'shipped', null, 'Aramex', '4412801', '3 Corniche Road, Alexandria'),
    ('lumen', 'LU-3014', 'd.miller@mail.example', 'Dana Miller', 'lava lamp', 5800, 'USD', 'delivered', date('now', '-20 days'), 'USPS', '9400333', '8 Maple Court, Boise, ID 83702');
